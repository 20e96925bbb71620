"""Draw all pictures of a comparison, whatever it is of."""

from __future__ import annotations

from matplotlib.figure import Figure

from baselines.analysis import plots
from baselines.analysis.heat_map import heat_map
from baselines.analysis.metric_over_bits import metric_over_bits
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison
from baselines.training.rounding import FLOAT


def figures_of(comparison: Comparison) -> dict[str, Figure]:
    """Return the pictures of a comparison, by the names of their files without the ending."""
    plan = comparison.plan
    if configs_of(plan):
        # No file of Windows has a colon in its name.
        ends = {each: "" if each == FLOAT else f"-{each.replace(':', '-')}" for each in plan.read}
        return {
            f"k-against-interval{end}": heat_map(comparison, reading)
            for reading, end in ends.items()
        }
    found = plots.figures(comparison)
    if plan.roundings:
        found["metric-over-bits"] = metric_over_bits(comparison)
    return found
