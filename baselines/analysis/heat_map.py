"""The picture of an ablation: k against interval, readable in black and white."""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines.analysis.ablation import SHARES, means, none, title
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison
from baselines.training.rounding import FLOAT


def heat_map(comparison: Comparison, reading: str = FLOAT) -> Figure:
    """Draw a panel at half of the budget and one at its end: darker is better, a box is the best.

    Each field has its number, the mean over seeds.
    """
    configs = configs_of(comparison.plan)
    ks = sorted({config.k for config in configs})
    intervals = list(dict.fromkeys(config.every for config in configs))
    size = (2 + 1.8 * len(ks), 1.6 + 0.6 * len(intervals))
    figure = Figure(figsize=(size[0], len(SHARES) * size[1]), layout="constrained")
    for axes, share in zip(figure.subplots(len(SHARES)), SHARES, strict=True):
        fields = [[math.nan for _ in ks] for _ in intervals]
        for config, mean in means(comparison, share, reading).items():
            if mean:
                fields[intervals.index(config.every)][ks.index(config.k)] = mean.mean
        _panel(axes, fields, comparison.plan.workload.badness, none(reading))
        axes.set_xticks(range(len(ks)), [f"k={k}" for k in ks])
        axes.set_yticks(range(len(intervals)), [f"every {every}" for every in intervals])
        axes.set_title(title(comparison, share, reading), fontsize=10)
    return figure


def _panel(
    axes: Axes, fields: list[list[float]], badness: Callable[[float], float], none: str
) -> None:
    known = [badness(value) for row in fields for value in row if math.isfinite(value)]
    # One grey for all where all are alike, or none is known.
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    shades = [[badness(value) for value in row] for row in fields]
    axes.imshow(shades, cmap="gray", vmin=low, vmax=high, aspect="auto")
    for y, row in enumerate(fields):
        for x, value in enumerate(row):
            if not math.isfinite(value):
                axes.text(x, y, none, ha="center", va="center")
                continue
            dark = badness(value) - low < 0.5 * (high - low)
            best = badness(value) == low
            axes.text(
                *(x, y, f"{value:.4f}"),
                ha="center",
                va="center",
                color="white" if dark else "black",
                bbox={"edgecolor": "white", "facecolor": "none"} if best else None,
            )
