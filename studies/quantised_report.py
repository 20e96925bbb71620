"""The numbers and the figure of `quantised.py`: all ends, and the order by precision."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quantised_answers import (
    COARSE,
    DECAYED,
    METHODS,
    READINGS,
    WSD,
    Study,
    added_over_time,
    against,
    ends,
    errors,
    seconds,
    window_metrics,
)
from runs import bars, changed, in_percent, share_axis

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find


def numbers(study: Study) -> dict[str, Any]:
    """All ends, differences and rounding errors, as values for JSON."""

    def told(value: Estimate | None) -> dict[str, float | None] | str:
        return "not finite" if value is None else asdict(value)

    def every(values: Sequence[float]) -> list[float | str]:
        return [value if math.isfinite(value) else "not finite" for value in values]

    return {
        "readings": list(READINGS),
        "rounded": {
            reading: str(rounded) for reading, rounded in study.long.runs[0].rounded.items()
        },
        "budgets": [
            {
                "budget_seconds": each.plan.budget.seconds,
                "rates": {m.name: each.plan.rate_of(m) for m in each.plan.methods},
                "settings": {m.name: m.settings for m in each.plan.methods},
                "test_metric": {
                    name: {reading: every(ends(each, name, reading)) for reading in READINGS}
                    for name in METHODS
                },
                **{
                    f"against_{decay}": {
                        name: {r: told(v) for r, v in against(each, name, decay).items()}
                        for name in METHODS
                        if name != decay
                    }
                    for decay in (DECAYED, WSD)
                },
                "relative_rounding_error": {
                    name: {r: every(errors(each, name, r)) for r in READINGS[1:]}
                    for name in METHODS
                },
            }
            for each in study.comparisons
        ],
        "windows": {
            rate: {
                reading: {
                    f"{share:.4f}": every(values)
                    for share, values in window_metrics(study, rate, reading).items()
                }
                for reading in READINGS
            }
            for rate in study.horizons
        },
    }


STYLES = {
    "constant": ("0.6", "x", ":"),
    "wsd": ("0.6", "D", "-."),
    DECAYED: ("black", "o", "-"),
    "lawa": ("tab:blue", "s", "-"),
    "ema": ("tab:orange", "^", "-"),
    "lawa-decayed": ("tab:blue", "s", "--"),
    "ema-decayed": ("tab:orange", "^", "--"),
}


def draw(study: Study) -> Figure:
    """The order by precision, what rounding adds along the training, and windows."""
    plan = study.long.plan
    figure = Figure(figsize=(15, 5), layout="constrained")
    by_precision, over_time, windows = figure.subplots(1, 3)
    draw_order(by_precision, study.long)
    draw_added(over_time, study.long)
    draw_windows(windows, study)
    for axes in (by_precision, over_time, windows):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(
        f"{plan.workload.name}, {plan.budget.seconds:g} s of RST, {len(plan.seeds)} seeds, 95% "
        "intervals: weights read as they will be used"
    )
    return figure


def draw_order(axes: Axes, comparison: Comparison) -> None:
    for name, (color, marker, dash) in STYLES.items():
        if name == DECAYED:
            continue
        found = against(comparison, name, DECAYED)
        # Lines within rows and within groups: what lies between is no step of precision.
        for part in (READINGS[:4], READINGS[4:]):
            kept = [(READINGS.index(r), found[r]) for r in part if found[r] is not None]
            values = [in_percent(value) for _, value in kept if value is not None]
            how: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dash}
            label = find(name).title if part == READINGS[:4] else None
            bars(axes, [place for place, _ in kept], values, label=label, **how)
    share_axis(axes)
    axes.set_xticks(range(len(READINGS)), READINGS)
    axes.set_xlabel("read as")
    axes.set_ylabel("test metric: worse than the decayed rate,\nread alike, by [%]")


def draw_added(axes: Axes, comparison: Comparison) -> None:
    for name in ("constant", "wsd", DECAYED, "lawa", "ema"):
        color, marker, dash = STYLES[name]
        found = added_over_time(comparison, name, COARSE)
        values = [in_percent(changed(estimate(of), math.expm1)) for of in found.values()]
        how: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dash}
        bars(axes, [100 * share for share in found], values, label=find(name).title, **how)
    axes.set_xlabel("RST spent [% of the budget]")
    axes.set_ylabel(f"{COARSE} adds to the validation metric [%]")


def draw_windows(axes: Axes, study: Study) -> None:
    for rate, color in zip(study.horizons, ("tab:blue", "black"), strict=False):
        for reading, marker, dash in (("float", "o", "-"), (COARSE, "s", "--"), ("int3", "^", ":")):
            found = {
                share: values
                for share, values in window_metrics(study, rate, reading).items()
                if all(map(math.isfinite, values))
            }
            how: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dash}
            values = [estimate(of) for of in found.values()]
            bars(axes, [100 * s for s in found], values, label=f"{rate}, {reading}", **how)
    axes.set_xscale("log")
    axes.set_xlabel("window of LAWA, as a share of training [%]")
    axes.set_ylabel(f"validation metric at {seconds(study.windows)}")
