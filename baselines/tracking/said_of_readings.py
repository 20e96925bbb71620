"""Say of weights that are read rounded what MLflow is to have: a section of metrics for each."""

from __future__ import annotations

import math

from baselines.training.readings import NOT_FINITE
from baselines.training.results import Point, Run


def section_of(reading: str) -> str:
    """Return the section of a reading's metrics: without a slash, as there is one level only."""
    return f"read_as_{reading.replace(':', '-')}"


def point_metrics(point: Point) -> dict[str, float]:
    """Return the metric of an evaluation by reading; what is not finite is left out."""
    return _finite({f"{section_of(name)}/validation": value for name, value in point.read.items()})


def end_metrics(run: Run) -> dict[str, float]:
    """Return what a run ends with by reading, and how far rounding moved its weights."""
    if run.failure is not None:
        return {}
    found = {}
    for name, rounded in run.rounded.items():
        section = section_of(name)
        found[f"{section}/final"] = run.final_as(name)
        found[f"{section}/test"] = run.test_as(name)
        found[f"{section}/relative_error"] = rounded.relative_error
        found[f"{section}/bits_per_weight"] = rounded.bits_per_weight
    return _finite(found)


def not_finite(run: Run) -> dict[str, str]:
    """Return a tag for each reading that has no finite metric somewhere, and where."""
    tags = {}
    for name in run.rounded:
        count = sum(not math.isfinite(point.read[name]) for point in run.points)
        where = [f"at {count} of {len(run.points)} evaluations"] if count else []
        where += ["on the test part"] if math.isnan(run.test_as(name)) else []
        if where:
            tags[section_of(name)] = f"{NOT_FINITE} {' and '.join(where)}"
    return tags


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
