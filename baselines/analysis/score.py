"""AlgoPerf's score: how often, and by how much, a method is near the fastest to the target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baselines.analysis import tables
from baselines.analysis.intervals import median
from baselines.experiment.comparison import Comparison

LONGEST = 4.0


@dataclass(frozen=True)
class Score:
    """A method's performance profile over comparisons (Dahl et al. 2023, arXiv 2306.07179, 4.5).

    Attributes:
        method: its name.
        title: in tables and plots.
        ratios: for each comparison, its median RST to the target over the least of all methods;
            infinite if it is never reached.
        by_seed: the scores that each seed alone would give; empty if the comparisons have
            different seeds.
    """

    method: str
    title: str
    ratios: tuple[float, ...]
    by_seed: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """Return the profile's mean over tau from 1 to 4, in [0, 1]: 1 if fastest everywhere."""
        return score(self.ratios)


def profile(ratios: Sequence[float], tau: float) -> float:
    """Return rho(tau), the share of comparisons done within tau times the least time."""
    return statistics.fmean(ratio <= tau for ratio in ratios)


def score(ratios: Sequence[float]) -> float:
    """Return the integral of `profile` over tau from 1 to 4, divided by 3."""
    # The integral of a step from 0 to 1 is what is left on its right.
    left = (max(0.0, LONGEST - ratio) for ratio in ratios)
    return statistics.fmean(left) / (LONGEST - 1)


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each method's time over the least of all; where nobody arrives, all are infinite."""
    least = min(seconds.values())
    return {
        method: each / least if math.isfinite(each) else math.inf
        for method, each in seconds.items()
    }


def scores(comparisons: Sequence[Comparison]) -> list[Score]:
    """Score every method, the best first.

    Args:
        comparisons: of the same methods and policy, each of another workload or budget.

    Raises:
        ValueError: they are not.
    """
    _check(comparisons)
    methods = comparisons[0].plan.names
    by_comparison = [
        {row.method: row.rst_to_target for row in tables.rows(comparison)}
        for comparison in comparisons
    ]

    def of_all(seconds: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
        each = [ratios(one) for one in seconds]
        return {method: tuple(one[method] for one in each) for method in methods}

    medians = of_all(
        [{m: median(times).median for m, times in table.items()} for table in by_comparison]
    )
    alone: list[dict[str, tuple[float, ...]]] = []
    if len({comparison.plan.seeds for comparison in comparisons}) == 1:
        alone = [
            of_all([{m: times[place] for m, times in table.items()} for table in by_comparison])
            for place in range(len(comparisons[0].plan.seeds))
        ]
    titles = comparisons[0].plan.titles
    found = [
        Score(method, titles[method], medians[method], tuple(score(one[method]) for one in alone))
        for method in methods
    ]
    return sorted(found, key=lambda each: -each.score)


def _check(comparisons: Sequence[Comparison]) -> None:
    if not comparisons:
        raise ValueError("a score is of at least one comparison")
    first = comparisons[0].plan
    seen = set()
    for comparison in comparisons:
        plan = comparison.plan
        if set(plan.names) != set(first.names):
            raise ValueError(
                f"{label(comparison)} compares {', '.join(plan.names)}, and "
                f"{label(comparisons[0])} {', '.join(first.names)}: a score is of the same "
                "methods everywhere"
            )
        if plan.policy != first.policy:
            raise ValueError(
                f"{label(comparison)} is under the policy {plan.policy}, and "
                f"{label(comparisons[0])} under {first.policy}: a score is under one"
            )
        if plan.free != first.free:
            raise ValueError(
                f"{label(comparison)} charges other operations than {label(comparisons[0])}: a "
                "score is under one --free"
            )
        if label(comparison) in seen:
            raise ValueError(f"{label(comparison)} is given twice, and would count twice")
        seen.add(label(comparison))


def label(comparison: Comparison) -> str:
    """Return workload and budget in a few characters."""
    plan = comparison.plan
    return f"{plan.workload.name}, {plan.budget.seconds:g} s{plan.but_free}"


def table(found: Sequence[Score], comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return a head, and a line a method: its score, and its ratio on each comparison."""
    head = ["method", "score", "each seed alone", *map(label, comparisons)]
    return [
        head,
        *(
            [each.title, f"{each.score:.3f}", _range(each), *map(_ratio, each.ratios)]
            for each in found
        ),
    ]


def _range(each: Score) -> str:
    if len(each.by_seed) < 2:
        return "-"
    return f"{min(each.by_seed):.3f} to {max(each.by_seed):.3f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if math.isfinite(ratio) else "never"


def conditions(comparisons: Sequence[Comparison]) -> str:
    """Say what the score says, and what it does not."""
    coarsest = max(c.plan.resolution_seconds / c.plan.budget.seconds for c in comparisons)
    return (
        f"Score: the share of {len(comparisons)} comparison(s) where a method needs at most tau "
        f"times the least median RST to the target, mean over tau from 1 to {LONGEST:g}. Lower "
        "ratios and higher scores are better. The target is what the constant rate ends with on "
        "the validation part; times to it are known to "
        f"{coarsest:.0%} of a budget. A score depends on which methods and workloads it is of, "
        "and scores whose ranges over the seeds overlap are not told apart."
    )
