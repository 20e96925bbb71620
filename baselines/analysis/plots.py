"""The pictures of a comparison, readable in black and white and by colour-blind readers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from baselines.analysis import tables
from baselines.analysis.charges import seconds_by_operation
from baselines.analysis.intervals import estimate, median
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from timing.statistics import CONFIDENCE, median_coverage


class Style(NamedTuple):
    """How a method is drawn, in every plot alike."""

    colour: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str


# Okabe and Ito's colours, told apart by colour-blind readers; dashes and markers by everyone on
# paper. Their numbers have no common divisor, so that no two of 210 methods are drawn alike.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...]
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")
# What is judged is filled and solid, what was chosen by is hollow and dotted.
_DRAWN: dict[str, dict[str, Any]] = {
    "test": {"linestyle": "-", "linewidth": 2},
    "validation": {"linestyle": ":", "linewidth": 1.5, "markerfacecolor": "white"},
}
# Of the budget: what is before is not shown.
FIRST_SHOWN = 0.2
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++", "ooo", "|||")


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Draw all of them, by the names of their files without the ending."""
    return {
        "metric-over-rst": metric_over_rst(comparison),
        "final-metric": final_metric(comparison),
        "time-to-target": time_to_target(comparison),
        "account": account(comparison),
    }


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style for each method, no two alike in colour, dash and marker at once."""
    endless = map(Style, cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS))
    return dict(zip(methods, endless, strict=False))


def metric_over_rst(comparison: Comparison) -> Figure:
    """Plot the validation metric against RST: means over seeds and their 95% intervals.

    From a fifth of the budget on, for what is before is far from what tells the methods apart. The
    legend has the order in which the lines end.
    """
    plan = comparison.plan
    figure, axes = figure_of(4.6, 10.5)
    begin = FIRST_SHOWN * plan.budget.seconds
    late: list[float] = []
    ends: dict[str, tuple[float, Line2D]] = {}
    for index, (method, style) in enumerate(styles(plan.names).items()):
        runs = [run for run in comparison.of(method) if not run.failure]
        # Runs of a method evaluate at the same points of the budget, up to a reading's cost.
        points = list(zip(*(run.points for run in runs), strict=False))
        if not points:
            continue
        means = [estimate([p.value for p in same]) for same in points]
        # A few intervals a line, at other places than those of the next line; bands of several
        # methods would hide each other.
        apart = max(1, len(points) // 6)
        some = (index % apart, apart)
        seconds = [statistics.fmean(p.rst_seconds for p in same) for same in points]
        values = [mean.mean for mean in means]
        (line,) = axes.plot(
            seconds,
            values,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=5,
            markevery=some,
            label=plan.titles[method],
        )
        axes.errorbar(
            seconds,
            values,
            yerr=[
                [0.0 if mean.low is None else mean.mean - mean.low for mean in means],
                [0.0 if mean.high is None else mean.high - mean.mean for mean in means],
            ],
            errorevery=some,
            fmt="none",
            ecolor=style.colour,
            elinewidth=1.2,
        )
        ends[method] = values[-1], line
        late += [value for at, value in zip(seconds, values, strict=True) if at >= begin]
    axes.set_xlabel("reference system time [s]")
    axes.set_ylabel(f"validation, {plan.workload.metric} ({plan.workload.better} is better)")
    axes.set_title(f"{plan.workload.name}: {over_seeds(plan)}")
    if late:
        margin = 0.05 * (max(late) - min(late)) or 0.05
        axes.set_ylim(min(late) - margin, max(late) + margin)
        axes.set_xlim(begin, 1.01 * plan.budget.seconds)
        # From above, as the lines are at the right edge.
        handles = [line for _, line in sorted(ends.values(), key=lambda end: -end[0])]
        if tables.TARGET_METHOD in ends:
            target, _ = ends[tables.TARGET_METHOD]
            drawn = axes.axhline(target, color="0.5", linewidth=1, linestyle=(0, (1, 2)))
            drawn.set_label("target, mean of the seeds")
            handles.append(drawn)
        figure.legend(handles=handles, loc="outside right center")
    axes.grid(alpha=0.3)
    return figure


def final_metric(comparison: Comparison) -> Figure:
    """Plot the metric at the end of the budget, on the test part and below it on validation.

    Each seed, the mean and its 95% interval; failures are named.
    """
    plan = comparison.plan
    figure, axes = figure_of(1.8 + 0.6 * len(plan.methods))
    table = tables.rows(comparison)
    for place, row in enumerate(table):
        style = styles(plan.names)[row.method]
        _seeds(axes, place - 0.16, row.tests, style)
        _mean(axes, place - 0.16, row.tests, style, "test")
        _seeds(axes, place + 0.16, row.finals, style)
        _mean(axes, place + 0.16, row.finals, style, "validation")
    _name_methods(axes, plan.titles, {row.method: row.ends for row in table}, "failed")
    axes.grid(axis="x", alpha=0.3)
    at_end = f"{plan.workload.metric} at the end of the budget"
    axes.set_xlabel(f"{at_end} ({plan.workload.better} is better)")
    axes.set_title(f"{plan.workload.name}, {plan.budget.seconds:g} s: {over_seeds(plan)}")
    parts = ("test", "validation") if plan.read_test else ("validation",)
    figure.legend(
        handles=[
            Line2D([], [], color="black", marker="o", label=f"{part} part", **_DRAWN[part])
            for part in parts
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def time_to_target(comparison: Comparison) -> Figure:
    """Plot the RST to the target: each seed, the median, its interval; misses are named.

    An interval that goes on to never ends in an arrow at the right edge.
    """
    plan = comparison.plan
    figure, axes = figure_of(1.8 + 0.45 * len(plan.methods))
    axes.set_xlim(0, 1.02 * plan.budget.seconds)
    _, edge = axes.get_xlim()
    table = tables.rows(comparison)
    for place, row in enumerate(table):
        style = styles(plan.names)[row.method]
        found = median(row.rst_to_target)
        _seeds(axes, place, row.rst_to_target, style)
        if found.low is not None and found.high is not None and math.isfinite(found.low):
            axes.hlines(place, found.low, min(found.high, edge), color=style.colour, linewidth=2)
            if math.isinf(found.high):
                axes.plot([edge], [place], ">", color=style.colour, markersize=9, clip_on=False)
        if math.isfinite(found.median):
            axes.plot([found.median], [place], style.marker, color=style.colour, markersize=9)
    axes.axvline(plan.budget.seconds, color="0.4", linestyle="--", linewidth=1, label="budget")
    _name_methods(axes, plan.titles, {row.method: row.rst_to_target for row in table}, "never")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("reference system time to the target [s]")
    count = len(plan.seeds)
    over = "one seed, so no interval"
    if count > 1:
        which = tables.median_in_words(count)
        over = f"{which} of {count} seeds, {median_coverage(count):.0%} interval"
    axes.set_title(f"{plan.workload.name}: {over}{plan.but_free}")
    figure.legend(loc="outside lower center")
    return figure


def account(comparison: Comparison) -> Figure:
    """Draw where the RST went: mean seconds of each operation, apart what is not charged.

    Of the runs that ended; how many did not is named. Beside each stands its overhead: the share of
    what is charged that is not the largest operation, the training step.
    """
    plan = comparison.plan
    totals = seconds_by_operation(comparison)
    figure, axes = figure_of(2.4 + 0.45 * len(plan.methods))
    places = range(len(plan.methods))
    ends = [0.0] * len(plan.methods)
    # What is charged first, so that it adds up to the budget from the left.
    ordered = sorted(totals, key=lambda key: not key[1])
    for (operation, charged), colour, hatch in zip(
        ordered, cycle(_COLOURS[1:]), cycle(_HATCHES), strict=False
    ):
        widths = [totals[operation, charged].get(method, 0.0) for method in plan.names]
        axes.barh(
            places,
            widths,
            left=ends,
            # What is not charged is seen to be outside the account.
            color=colour if charged else "none",
            hatch=hatch,
            edgecolor="black",
            linewidth=0.6,
            label=operation if charged else f"{operation} (not charged)",
        )
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.axvline(plan.budget.seconds, color="black", linestyle="--", linewidth=1, label="budget")
    for place, method in enumerate(plan.names):
        paid = [by.get(method, 0.0) for (_, is_charged), by in totals.items() if is_charged]
        if whole := math.fsum(paid):
            said = f" {1 - max(paid) / whole:.1%}"
            axes.annotate(said, (ends[place], place), va="center", annotation_clip=False)
    axes.margins(x=0.1)
    finals = {m: [run.final for run in comparison.of(m)] for m in plan.names}
    _name_methods(axes, plan.titles, finals, "failed")
    axes.set_xlabel("reference system time [s], mean of the seeds")
    beside = f"the overhead beside training steps{plan.but_free}"
    axes.set_title(f"{plan.workload.name}: the account, and {beside}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def figure_of(height_inches: float, width_inches: float = 8) -> tuple[Figure, Axes]:
    """Return an empty figure of this size, and its axes."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _seeds(axes: Axes, place: float, values: Sequence[float], style: Style) -> None:
    """Draw each seed, hollow and small; what is infinite is left out."""
    finite = [value for value in values if math.isfinite(value)]
    axes.plot(
        finite,
        [place] * len(finite),
        style.marker,
        color=style.colour,
        fillstyle="none",
        markersize=4,
    )


def _mean(axes: Axes, place: float, values: Sequence[float], style: Style, part: str) -> None:
    """Draw the mean of what is finite, and its 95% interval."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    mean = estimate(finite)
    ends = [value for value in (mean.low, mean.mean, mean.high) if value is not None]
    axes.plot(
        ends,
        [place] * len(ends),
        color=style.colour,
        marker=style.marker,
        # On the mean alone, not on the ends of its interval.
        markevery=[len(ends) // 2],
        markersize=9,
        **_DRAWN[part],
    )


def _name_methods(
    axes: Axes, titles: Mapping[str, str], values: Mapping[str, Sequence[float]], word: str
) -> None:
    """Name a row a method, and how many of its values are infinite, in this word."""
    labels = []
    for method, title in titles.items():
        of = values[method]
        missed = sum(not math.isfinite(value) for value in of)
        note = f"\n{missed} of {len(of)} {word}" if missed else ""
        labels.append(title + note)
    axes.set_yticks(range(len(labels)), labels)
    # As a table is read: the first method on top.
    axes.set_ylim(len(labels) - 0.4, -0.6)


def over_seeds(plan: Plan) -> str:
    """Return over how many seeds a mean is, and of which confidence its interval."""
    if len(plan.seeds) < 2:
        return f"one seed, so no interval{plan.but_free}"
    return f"mean of {len(plan.seeds)} seeds and its {CONFIDENCE:.0%} interval{plan.but_free}"
