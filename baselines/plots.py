"""The pictures of a comparison, readable in black and white and by colour-blind readers."""

from __future__ import annotations

import math
import statistics
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from baselines import report
from baselines.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from baselines.comparison import Comparison


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
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++", "ooo", "|||")


def figures(comparison: Comparison) -> dict[str, Figure]:
    """All of them, by the names of their files without the ending."""
    return {
        "metric-over-rst": metric_over_rst(comparison),
        "final-metric": final_metric(comparison),
        "time-to-target": time_to_target(comparison),
        "account": account(comparison),
    }


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method, no two alike in colour, dash and marker at once."""
    endless = map(Style, cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS))
    return dict(zip(methods, endless, strict=False))


def metric_over_rst(comparison: Comparison) -> Figure:
    """The validation metric against RST: each method's mean over seeds and its 95% interval."""
    figure, axes = _figure(5.0)
    plan = comparison.plan
    late: list[float] = []
    for index, (method, style) in enumerate(styles(plan.methods).items()):
        runs = [run for run in comparison.of(method) if not run.failure]
        # Runs of a method evaluate at the same points of the budget, up to a reading's cost.
        points = list(zip(*(run.points for run in runs), strict=False))
        if not points:
            continue
        means = [report.estimate([p.value for p in same]) for same in points]
        # A few intervals a line, at other places than those of the next line; bands of several
        # methods would hide each other.
        apart = max(1, len(points) // 6)
        some = (index % apart, apart)
        seconds = [statistics.fmean(p.rst_seconds for p in same) for same in points]
        values = [mean.mean for mean in means]
        axes.plot(
            seconds,
            values,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=5,
            markevery=some,
            label=METHODS[method].title,
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
        late += values[len(values) // 4 :]
    axes.set_xlabel("reference system time [s]")
    axes.set_ylabel(f"validation, {plan.workload.metric} (lower is better)")
    axes.set_title(f"{plan.workload.name}: {_over(len(plan.seeds))}")
    if late:
        # The first quarter is far above what tells the methods apart.
        margin = 0.05 * (max(late) - min(late)) or 0.05
        axes.set_ylim(min(late) - margin, max(late) + margin)
        axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    return figure


def final_metric(comparison: Comparison) -> Figure:
    """The metric at the end of the budget: each seed, the mean and its 95% interval."""
    plan = comparison.plan
    finals = {method: [run.final for run in comparison.of(method)] for method in plan.methods}
    figure, axes = _by_method(plan.methods, finals)
    axes.set_xlabel(f"{plan.workload.metric} at the end of the budget (lower is better)")
    axes.set_title(f"{plan.workload.name}, {plan.budget.seconds:g} s: {_over(len(plan.seeds))}")
    return figure


def time_to_target(comparison: Comparison) -> Figure:
    """RST to the target: each seed, the mean and its 95% interval; a miss is "never"."""
    plan = comparison.plan
    times = {row.method: row.rst_to_target for row in report.rows(comparison)}
    figure, axes = _by_method(plan.methods, times)
    axes.axvline(plan.budget.seconds, color="0.6", linewidth=1, label="budget")
    axes.set_xlabel("reference system time to the target [s]")
    axes.set_title(f"{plan.workload.name}: {_over(len(plan.seeds))}")
    axes.set_xlim(left=0)
    return figure


def account(comparison: Comparison) -> Figure:
    """Where the RST went: mean seconds of each operation, and apart what is not charged."""
    plan = comparison.plan
    totals: dict[tuple[str, bool], dict[str, float]] = {}
    for method in plan.methods:
        runs = comparison.of(method)
        for run in runs:
            for line in run.account:
                key = str(line["operation"]), bool(line["charged"])
                by_method = totals.setdefault(key, {})
                seconds = float(line["seconds"]) / len(runs)
                by_method[method] = by_method.get(method, 0.0) + seconds
    figure, axes = _figure(1.6 + 0.45 * len(plan.methods))
    places = range(len(plan.methods))
    ends = [0.0] * len(plan.methods)
    # What is charged first, so that it adds up to the budget from the left.
    ordered = sorted(totals, key=lambda key: not key[1])
    for (operation, charged), colour, hatch in zip(
        ordered, cycle(_COLOURS[1:]), cycle(_HATCHES), strict=False
    ):
        widths = [totals[operation, charged].get(method, 0.0) for method in plan.methods]
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
    _name_methods(axes, plan.methods)
    axes.set_xlabel("reference system time [s], mean of the seeds")
    axes.set_title(f"{plan.workload.name}: the account")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _by_method(
    methods: Sequence[str], values: Mapping[str, Sequence[float]]
) -> tuple[Figure, Axes]:
    """A row a method: its seeds hollow, mean and interval filled; what is infinite is named."""
    figure, axes = _figure(1.6 + 0.45 * len(methods))
    for place, (method, style) in enumerate(styles(methods).items()):
        finite = [value for value in values[method] if math.isfinite(value)]
        missed = len(values[method]) - len(finite)
        if finite:
            mean = report.estimate(finite)
            seeds = [place] * len(finite)
            axes.plot(
                finite, seeds, style.marker, color=style.colour, fillstyle="none", markersize=5
            )
            if mean.low is not None and mean.high is not None:
                axes.hlines(place, mean.low, mean.high, color=style.colour, linewidth=2)
            axes.plot([mean.mean], [place], style.marker, color=style.colour, markersize=9)
        if missed:
            axes.annotate(
                f"{missed} of {len(values[method])} never",
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 6),
                textcoords="offset points",
                horizontalalignment="right",
            )
    _name_methods(axes, methods)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def _name_methods(axes: Axes, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), [METHODS[method].title for method in methods])
    # As a table is read: the first method on top.
    axes.set_ylim(len(methods) - 0.4, -0.6)


def _over(seeds: int) -> str:
    if seeds < 2:
        return "one seed, so no interval"
    return f"mean of {seeds} seeds and its {report.CONFIDENCE:.0%} interval"
