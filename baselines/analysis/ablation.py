"""Say what an ablation found: the metric of each window, with intervals, and which is best."""

from __future__ import annotations

import math

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.ablation import LIVE, WindowConfig, configs_of
from baselines.experiment.comparison import Comparison
from lawa_opt.schedule import Every

# Of the budget, at which the windows are compared.
SHARES = (0.5, 1.0)


def means(comparison: Comparison, share: float = 1.0) -> dict[WindowConfig, Estimate | None]:
    """Return the metric of each window at this share of the budget, over seeds.

    None where a run failed.
    """
    configs = configs_of(comparison.plan)
    return {config: _metric(comparison, config.name, share) for config in configs}


def _metric(comparison: Comparison, name: str, share: float) -> Estimate | None:
    at = comparison.plan.budget.seconds * share
    values = [run.value_at(at) for run in comparison.of(name)]
    return estimate(values) if all(map(math.isfinite, values)) else None


def table(comparison: Comparison, share: float = 1.0) -> list[list[str]]:
    """Return the metric of each window at this share of the budget: rows by interval, columns by k.

    The first row heads; the second has the live weights.
    """
    ks = sorted({config.k for config in configs_of(comparison.plan)})
    rows: dict[Every, list[str]] = {}
    for config, mean in means(comparison, share).items():
        rows.setdefault(config.every, ["" for _ in ks])
        rows[config.every][ks.index(config.k)] = str(mean or "failed")
    live = [str(_metric(comparison, LIVE, share) or "failed"), *("" for _ in ks[1:])]
    return [
        ["every", *(f"k={k}" for k in ks)],
        ["live", *live],
        *([str(every), *row] for every, row in rows.items()),
    ]


def title(comparison: Comparison, share: float) -> str:
    """Return the heading of a table at this share of the budget."""
    plan = comparison.plan
    seconds = plan.budget.seconds * share
    return f"{plan.workload.name}: {plan.workload.metric} after {seconds:g} s of RST{plan.but_free}"


def verdict(comparison: Comparison) -> str:
    """Return a sentence on which window ends best, and how far from the live weights."""
    ends = {config: mean for config, mean in means(comparison).items() if mean}
    live = _metric(comparison, LIVE, 1.0)
    if not ends or not live:
        return "A training failed, so no window is best."
    badness = comparison.plan.workload.badness
    best = min(ends, key=lambda config: badness(ends[config].mean))
    return (
        f"Best at the end: {best} with {ends[best]}, where the live weights have {live}. "
        f"Chosen among {len(ends)} windows by the validation part, so it flatters itself."
    )


def columns(comparison: Comparison) -> dict[str, list[str | float]]:
    """Return the tables by column, unrounded, a line a window and seed."""
    half, end = (comparison.plan.budget.seconds * share for share in SHARES)
    lines = [
        (config.k, str(config.every), run.seed, *map(_or_failed, map(run.value_at, (half, end))))
        for config in configs_of(comparison.plan)
        for run in comparison.of(config.name)
    ]
    names = ("k", "every", "seed", "metric_at_half", "final_metric")
    return {
        name: list(values) for name, values in zip(names, zip(*lines, strict=True), strict=True)
    }


def _or_failed(value: float) -> str | float:
    return value if math.isfinite(value) else "failed"
