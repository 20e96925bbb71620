"""Say what an ablation found: the metric of each window, with intervals, and which is best."""

from __future__ import annotations

import math

from baselines.analysis.intervals import Estimate, estimate
from baselines.analysis.tables import or_word
from baselines.experiment.ablation import LIVE, WindowConfig, configs_of
from baselines.experiment.comparison import Comparison
from baselines.training.readings import NOT_FINITE, in_title
from baselines.training.rounding import FLOAT
from lawa_opt.schedule import Every

# Of the budget, at which the windows are compared.
SHARES = (0.5, 1.0)


def means(
    comparison: Comparison, share: float = 1.0, reading: str = FLOAT
) -> dict[WindowConfig, Estimate | None]:
    """Return the metric of each window at this share of the budget, read so, over seeds.

    None where a run failed, or has no finite metric.
    """
    configs = configs_of(comparison.plan)
    return {config: _metric(comparison, config.name, share, reading) for config in configs}


def _metric(comparison: Comparison, name: str, share: float, reading: str) -> Estimate | None:
    at = comparison.plan.budget.seconds * share
    values = [run.value_at(at, reading) for run in comparison.of(name)]
    return estimate(values) if all(map(math.isfinite, values)) else None


def none(reading: str) -> str:
    """Return what is said in place of a metric that some seed does not have."""
    return "failed" if reading == FLOAT else f"failed or {NOT_FINITE}"


def table(comparison: Comparison, share: float = 1.0, reading: str = FLOAT) -> list[list[str]]:
    """Return the metric of each window at this share of the budget: rows by interval, columns by k.

    The first row heads; the second has the live weights.
    """
    ks = sorted({config.k for config in configs_of(comparison.plan)})
    rows: dict[Every, list[str]] = {}
    for config, mean in means(comparison, share, reading).items():
        rows.setdefault(config.every, ["" for _ in ks])
        rows[config.every][ks.index(config.k)] = str(mean or none(reading))
    live = str(_metric(comparison, LIVE, share, reading) or none(reading))
    return [
        ["every", *(f"k={k}" for k in ks)],
        ["live", live, *("" for _ in ks[1:])],
        *([str(every), *row] for every, row in rows.items()),
    ]


def title(comparison: Comparison, share: float, reading: str = FLOAT) -> str:
    """Return the heading of a table at this share of the budget."""
    plan = comparison.plan
    seconds = plan.budget.seconds * share
    after = f"{plan.workload.metric} after {seconds:g} s of RST{plan.but_free}"
    return f"{plan.workload.name}: {after}{in_title(reading)}"


def verdict(comparison: Comparison, reading: str = FLOAT) -> str:
    """Return a sentence on which window ends best, and how far from the live weights."""
    ends = {config: mean for config, mean in means(comparison, 1.0, reading).items() if mean}
    live = _metric(comparison, LIVE, 1.0, reading)
    read = "" if reading == FLOAT else f"Read as {reading}: "
    if not ends or not live:
        why = "A training failed" if reading == FLOAT else f"A training failed or is {NOT_FINITE}"
        return f"{read}{why}, so no window is best."
    badness = comparison.plan.workload.badness
    best = min(ends, key=lambda config: badness(ends[config].mean))
    return (
        f"{read}Best at the end: {best} with {ends[best]}, where the live weights have {live}. "
        f"Chosen among {len(ends)} windows by the validation part, so it flatters itself."
    )


def columns(comparison: Comparison) -> dict[str, list[str | float]]:
    """Return the tables by column, unrounded, a line a window and seed."""
    plan = comparison.plan
    moments = dict(zip(("metric_at_half", "final_metric"), SHARES, strict=True))
    asked = {
        f"{name}{'' if reading == FLOAT else f'_as_{reading}'}": (
            plan.budget.seconds * share,
            reading,
        )
        for reading in plan.read
        for name, share in moments.items()
    }
    lines = [
        (
            *(config.k, str(config.every), run.seed),
            *(or_word(run.value_at(*each)) for each in asked.values()),
        )
        for config in configs_of(plan)
        for run in comparison.of(config.name)
    ]
    return {
        name: list(values)
        for name, values in zip(
            ("k", "every", "seed", *asked), zip(*lines, strict=True), strict=True
        )
    }
