"""The picture of how a metric goes as weights are read with fewer bits, a line a method."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from baselines.analysis.intervals import estimate
from baselines.analysis.plots import Style, figure_of, over_seeds, styles
from baselines.analysis.read_as import what_is_rounded
from baselines.analysis.tables import Row, rows
from baselines.experiment.comparison import Comparison
from baselines.training.readings import NOT_FINITE

# Between methods at one reading, so that no interval hides another.
_APART = 0.04
# Of the largest metric over the smallest: beyond it a logarithm shows both.
_MOST_LINEAR = 3.0
# Up to which ratio of its ends a logarithmic axis has numbers at which steps of each decade.
_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (10.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (1e4, (1.0, 2.0, 5.0)),
    (math.inf, (1.0,)),
)


def metric_over_bits(comparison: Comparison) -> Figure:
    """Plot the metric at the end of the budget over readings, from float to the fewest bits.

    Means over the seeds that have one, and their 95% intervals. Readings have even distances; each
    says its bits a weight, scales included. A method without a finite metric at some reading has no
    point there, and its name says so.
    """
    plan = comparison.plan
    figure, axes = figure_of(4.6, 10.5)
    read = [{row.method: row for row in rows(comparison, reading)} for reading in plan.read]
    middle = (len(plan.names) - 1) / 2
    drawn: list[float] = []
    for index, (method, style) in enumerate(styles(plan.names).items()):
        missing = [
            reading
            for reading, table in zip(plan.read, read, strict=True)
            if not all(map(math.isfinite, table[method].ends))
        ]
        note = f"\n{', '.join(missing)}: a seed failed or {NOT_FINITE}" if missing else ""
        shift = _APART * (index - middle)
        line = [table[method] for table in read]
        drawn += _line(axes, shift, line, style, plan.titles[method] + note)
    bits = {
        each.rounding: f"{each.bits_per_weight:.3g} bits" for each in what_is_rounded(comparison)
    }
    names = [f"{reading}\n{bits.get(reading, '')}".rstrip() for reading in plan.read]
    axes.set_xticks(range(len(names)), names)
    if drawn and min(drawn) > 0 and max(drawn) > _MOST_LINEAR * min(drawn):
        _say_powers_plainly(axes)
    part = "test" if plan.read_test else "validation"
    axes.set_xlabel("how the weights are read, and bits a weight with scales")
    axes.set_ylabel(f"{part}, {plan.workload.metric} ({plan.workload.better} is better)")
    axes.set_title(f"{plan.workload.name}, {plan.budget.seconds:g} s: {over_seeds(plan)}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure


def _say_powers_plainly(axes: Axes) -> None:
    """Make the axis of the metric logarithmic, with numbers that are no formula.

    The commands draw no formulas, since a name may hold what looks like one.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Some numbers on an axis that is short, and not too many on a long one.
    steps = next(steps for most, steps in _STEPS if high <= most * low)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, shift: float, line: Sequence[Row], style: Style, label: str) -> list[float]:
    """Draw a method's line, and return the means on it."""
    finite = [[value for value in row.ends if math.isfinite(value)] for row in line]
    means = [estimate(values) if values else None for values in finite]
    values = [mean.mean if mean else math.nan for mean in means]
    half = [
        (mean.high - mean.low) / 2
        if mean and mean.low is not None and mean.high is not None
        else 0.0
        for mean in means
    ]
    axes.errorbar(
        [place + shift for place in range(len(line))],
        values,
        yerr=half,
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=5,
        elinewidth=1.2,
        label=label,
    )
    return [value for value in values if math.isfinite(value)]
