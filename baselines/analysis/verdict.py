"""Say in plain sentences what ends BETTER, what WORSE, and what the seeds do not show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baselines.analysis.intervals import estimate
from baselines.analysis.tables import BASELINES, Row, rows
from baselines.experiment.comparison import Comparison
from baselines.methods.names import NAMES
from timing.statistics import CONFIDENCE

HYPOTHESES = (
    ("lawa", "constant"),
    ("lawa", "ema"),
    ("lawa", "swa"),
    ("lawa", "decayed"),
    ("lawa", "schedule-free"),
    ("lawa-decayed", "decayed"),
)

_FEW = {1: "one seed", 2: "two seeds"}


@dataclass(frozen=True)
class Shown:
    """A difference paired by seed, with its 95% interval: infinite from one seed."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_above_zero(self) -> bool:
        """Say whether enough seeds show it to be above zero."""
        return self.seeds not in _FEW and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Say whether enough seeds show it to be below zero."""
        return self.seeds not in _FEW and self.high < 0


def too_few(seeds: int) -> str:
    """Return what so few seeds cannot show; empty where there are enough."""
    return f"{_FEW[seeds]} cannot show a difference" if seeds in _FEW else ""


def gain(
    mine: Sequence[float], theirs: Sequence[float], badness: Callable[[float], float]
) -> Shown:
    """Return by how much the first are better, paired by seed; all must be finite."""
    return _shown([badness(y) - badness(x) for x, y in zip(mine, theirs, strict=True)])


def saving(mine: Row, theirs: Row, resolution_seconds: float) -> Shown | None:
    """Return the share of RST saved on the way to the target, paired by seed.

    Each of the two times may be late by up to a step of the grid, with every seed alike: so much
    wider is the interval. None where with some seed one of them did not reach the target.
    """
    saved = mine.savings[theirs.method]
    known = [each for each in saved if each is not None]
    if len(known) < len(saved):
        return None
    return _shown(known, resolution_seconds / min(theirs.rst_to_target))


def _shown(differences: Sequence[float], margin: float = 0.0) -> Shown:
    found = estimate(differences)
    low = -math.inf if found.low is None else found.low - margin
    high = math.inf if found.high is None else found.high + margin
    return Shown(found.mean, low, high, len(differences))


def verdict(comparison: Comparison) -> list[str]:
    """Return one plain sentence for each hypothesis, with what its interval supports."""
    table = {row.method: row for row in rows(comparison)}
    own = [
        (method.name, baseline)
        for method in comparison.plan.methods
        if method.name not in NAMES
        for baseline in BASELINES
    ]
    sentences = [
        _claim(table[method], table[baseline], comparison)
        for method, baseline in (*HYPOTHESES, *own)
        if method in table and baseline in table
    ]
    shares = {run.method: run.share for run in comparison.runs}
    for method, row in table.items():
        if shares[method] < 1 and "lawa" in table:
            sentences.append(_intermediate_comparison(row, shares[method], comparison))
    if not sentences:
        sentences.append("No two methods of a claim were compared, so nothing is claimed.")
    return sentences


def _claim(mine: Row, theirs: Row, comparison: Comparison) -> str:
    ending = _end_claim(mine, theirs, comparison)
    return f"{ending} {_time_claim(mine, theirs, comparison.plan.resolution_seconds)}"


def _end_claim(mine: Row, theirs: Row, comparison: Comparison) -> str:
    """Compare at the end of the budget."""
    part = "test" if comparison.plan.read_test else "validation"
    a, b = mine.title, theirs.title
    if not all(map(math.isfinite, [*mine.ends, *theirs.ends])):
        return f"{a} against {b}: a run failed, so the end of the budget is not compared."
    found = gain(mine.ends, theirs.ends, comparison.plan.workload.badness)
    shown = _in_words(found, mine.ends, theirs.ends, comparison.plan.workload.metric)
    if few := too_few(found.seeds):
        return f"On the {part} part {a} ends at {shown} of {b}; {few}."
    if found.is_above_zero:
        return f"On the {part} part {a} ends BETTER than {b}: {shown}."
    if found.is_below_zero:
        return f"On the {part} part {a} ends WORSE than {b}: {shown}."
    return f"On the {part} part {a} and {b}: no difference shown at the end: {shown}."


def _intermediate_comparison(annealed: Row, share: float, comparison: Comparison) -> str:
    """Compare LAWA in the middle of its run against a shorter run that was decayed to end there.

    On the validation part, for the test part is read only at the end of a run.
    """
    end = comparison.plan.budget.seconds * share
    values = [run.value_at(end) for run in comparison.of("lawa")]
    a, b = comparison.plan.titles["lawa"], f"a run {annealed.title}"
    if not all(map(math.isfinite, [*values, *annealed.finals])):
        return f"{a} against {b}: a run failed, or was not yet evaluated, so nothing is claimed."
    found = gain(values, annealed.finals, comparison.plan.workload.badness)
    shown = _in_words(found, values, annealed.finals, comparison.plan.workload.metric)
    then = f"After {end:g} s, on the validation part, {a}"
    if few := too_few(found.seeds):
        return f"{then} is at {shown} of {b}; {few}."
    word = "not shown to differ from"
    if found.is_above_zero or found.is_below_zero:
        word = "BETTER than" if found.is_above_zero else "WORSE than"
    return f"{then} is {word} {b}: {shown}."


def _in_words(found: Shown, mine: Sequence[float], theirs: Sequence[float], metric: str) -> str:
    """Return both, and by how much the first is better."""
    said = f"{estimate(mine).mean:.4f} against {estimate(theirs).mean:.4f} {metric}"
    if found.seeds > 1:
        said += (
            f" (gain {found.mean:+.4f}, {CONFIDENCE:.0%} interval [{found.low:+.4f}, "
            f"{found.high:+.4f}] over {found.seeds} paired seeds)"
        )
    return said


def _time_claim(mine: Row, theirs: Row, resolution_seconds: float) -> str:
    found = saving(mine, theirs, resolution_seconds)
    if found is None:
        saved = mine.savings[theirs.method]
        known = sum(each is not None for each in saved)
        return (
            f"With {known} of {len(saved)} seeds both reached the target, so no saving is claimed."
        )
    if few := too_few(found.seeds):
        return f"To the target it took {-found.mean:+.0%} RST; {few}."
    interval = (
        f"{CONFIDENCE:.0%} interval of the saving, widened by the grid, [{found.low:+.0%}, "
        f"{found.high:+.0%}]"
    )
    if found.is_above_zero:
        return f"It reached the target with {found.mean:.0%} less RST ({interval})."
    if found.is_below_zero:
        return f"It reached the target with {-found.mean:.0%} MORE RST ({interval})."
    return f"No saving of RST to the target is shown ({interval})."
