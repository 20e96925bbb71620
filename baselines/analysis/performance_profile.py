"""Draw AlgoPerf's performance profiles, of which a score is the mean."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from baselines.analysis.plots import figure_of, styles
from baselines.analysis.score import LONGEST, Score, profile


def performance_profile(scores: Sequence[Score]) -> Figure:
    """Plot the share of comparisons done within tau times the least RST: a step line a method.

    The lines are set apart by a hair each, so that equal ones are both seen.
    """
    figure, axes = figure_of(4.7 + 0.12 * len(scores))
    drawn = styles(one.method for one in scores)
    for index, one in enumerate(scores):
        style = drawn[one.method]
        reached = sorted(ratio for ratio in one.ratios if ratio <= LONGEST)
        taus = [1.0, *reached, LONGEST]
        axes.step(
            taus,
            [profile(one.ratios, tau) for tau in taus],
            where="post",
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=5,
            label=f"{one.title}: {one.score:.2f}",
            transform=offset_copy(axes.transData, figure, y=2.0 * index, units="points"),
            clip_on=False,
        )
    axes.set_xlim(1, LONGEST)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("tau: RST to the target over the least of all methods")
    axes.set_ylabel("share of comparisons")
    axes.set_title("Performance profile (score: the mean over tau)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
