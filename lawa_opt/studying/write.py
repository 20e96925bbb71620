"""A study as study.csv, study.json and study.png."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from lawa_opt.averaging_files.write import atomic_write
from lawa_opt.studying.result import Study
from lawa_opt.studying.windows import LIVE

COLUMNS = (
    "step",
    "window",
    "k",
    "every",
    "weights",
    "metric",
    "value",
    "value_to_choose_by",
    "is_best",
    "steps_saved",
    "bound",
    "error",
)


def rows_of(study: Study) -> list[dict[str, Any]]:
    """Return a row for each metric of each evaluation; what decides is told of its metric alone."""
    rows = []
    for point in study.points:
        window = point.window
        known = {
            "step": point.step,
            "window": str(window),
            "k": window.k,
            "every": window.every,
            "weights": window.weights,
        }
        if point.error:
            rows.append({**known, "error": point.error})
        for name, (to_choose_by, value) in point.values.items():
            row = {**known, "metric": name, "value": value, "value_to_choose_by": to_choose_by}
            if name == study.metric and not window.is_live:
                saved = study.saved(point.step, window)
                row["is_best"] = int(study.best(point.step) == window)
                row["steps_saved"] = saved.steps if saved else None
                row["bound"] = saved.bound if saved else None
            rows.append(row)
    return rows


def write_study(study: Study, folder: Path) -> None:
    """Write study.csv, study.json and study.png into a folder, each whole or not at all."""
    rows = rows_of(study)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    said = {
        "metric": study.metric,
        "unit": study.unit,
        "higher_is_better": study.higher_is_better,
        "target": None if math.isnan(study.target) else study.target,
        "to_target": study.to_target(),
        "notes": study.notes,
        "rows": [{name: _in_json(value) for name, value in row.items()} for row in rows],
    }
    for name, content in (("csv", text.getvalue()), ("json", json.dumps(said, indent=1) + "\n")):
        with atomic_write(folder / f"study.{name}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    with atomic_write(folder / "study.png") as temporary:
        draw(study, temporary)


def _in_json(value: Any) -> Any:
    """Return a value, or None for NaN and infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(study: Study, file: Path) -> None:
    """Draw the metric of each window by step, and below it the steps that each average saves."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing: pip install 'lawa-opt[study]'") from error

    figure = Figure(figsize=(9, 8), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for window in study.windows:
        known = [step for step in study.steps if math.isfinite(study.value(step, window))]
        if not known:
            continue
        values = [study.value(step, window) for step in known]
        if window == LIVE:
            top.plot(known, values, "k.-", label="live weights", zorder=3)
            continue
        (line,) = top.plot(known, values, ".-", label=str(window), alpha=0.8)
        saved = [study.saved(step, window) for step in known]
        bottom.plot(known, [s.steps if s else math.nan for s in saved], "-", color=line.get_color())
        for marker, bound in (("o", ""), ("^", "at least"), ("v", "at most")):
            of_it = [s.steps if s and s.bound == bound else math.nan for s in saved]
            bottom.plot(known, of_it, marker, color=line.get_color(), ms=4)
    top.axhline(study.target, color="grey", lw=0.8, ls="--")
    top.set_ylabel(study.metric)
    top.legend(fontsize="small")
    bottom.axhline(0, color="black", lw=0.8)
    bottom.set_xlabel(study.unit)
    bottom.set_ylabel(f"{study.unit}s saved (up: at least, down: at most)")
    figure.savefig(file, format="png", dpi=120)
