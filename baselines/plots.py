"""The picture of a comparison."""

from __future__ import annotations

import statistics
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from baselines.methods import METHODS

if TYPE_CHECKING:
    from baselines.comparison import Comparison

# Okabe and Ito's colours, told apart by colour-blind readers; the dashes by everyone on paper.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def metric_over_rst(comparison: Comparison) -> Figure:
    """The validation metric against RST: each method's mean over seeds, and its extremes."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    plan = comparison.plan
    finals = []
    for method, colour, dash in zip(plan.methods, cycle(_COLOURS), cycle(_DASHES), strict=False):
        runs = [run for run in comparison.of(method) if not run.failure]
        # Runs of a method evaluate at the same points of the budget, up to a reading's cost.
        points = list(zip(*(run.points for run in runs), strict=False))
        if not points:
            continue
        seconds = [statistics.fmean(p.rst_seconds for p in same) for same in points]
        values = [[p.value for p in same] for same in points]
        finals.append(statistics.fmean(values[-1]))
        axes.plot(
            seconds,
            [statistics.fmean(same) for same in values],
            color=colour,
            linestyle=dash,
            label=METHODS[method].title,
        )
        axes.fill_between(
            seconds, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15
        )
    axes.set_xlabel("reference system time [s]")
    axes.set_ylabel(f"validation, {plan.workload.metric} (lower is better)")
    axes.set_title(f"{plan.workload.name}: mean and extremes of {len(plan.seeds)} seeds")
    if finals:
        # The first points are far above what tells the methods apart.
        axes.set_ylim(top=max(finals) * 1.6, bottom=min(finals) * 0.95)
        axes.legend()
    axes.grid(alpha=0.3)
    return figure
