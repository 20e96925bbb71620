"""Say in plain sentences what ends BETTER, what WORSE, and what the seeds do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.analysis.intervals import Estimate, estimate
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
    metric = comparison.plan.workload.metric
    a, b = mine.title, theirs.title
    if not all(map(math.isfinite, [*mine.ends, *theirs.ends])):
        return f"{a} against {b}: a run failed, so the end of the budget is not compared."
    gain, shown = _gain(mine.ends, theirs.ends, metric)
    if gain.low is None or gain.high is None:
        return f"On the {part} part {a} ends at {shown} of {b}; one seed bears no conclusion."
    if gain.low > 0:
        return f"On the {part} part {a} ends BETTER than {b}: {shown}."
    if gain.high < 0:
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
    gain, shown = _gain(values, annealed.finals, comparison.plan.workload.metric)
    then = f"After {end:g} s, on the validation part, {a}"
    if gain.low is None or gain.high is None:
        return f"{then} is at {shown} of {b}; one seed bears no conclusion."
    word = "not shown to differ from"
    if gain.low > 0 or gain.high < 0:
        word = "BETTER than" if gain.low > 0 else "WORSE than"
    return f"{then} is {word} {b}: {shown}."


def _gain(mine: Sequence[float], theirs: Sequence[float], metric: str) -> tuple[Estimate, str]:
    """Return by how much the first is lower, paired by seed; and both, in words."""
    gain = estimate([y - x for x, y in zip(mine, theirs, strict=True)])
    shown = f"{estimate(mine).mean:.4f} against {estimate(theirs).mean:.4f} {metric}"
    if gain.low is not None and gain.high is not None:
        shown += (
            f" (gain {gain.mean:+.4f}, {CONFIDENCE:.0%} interval [{gain.low:+.4f}, "
            f"{gain.high:+.4f}] over {len(mine)} paired seeds)"
        )
    return gain, shown


def _time_claim(mine: Row, theirs: Row, resolution_seconds: float) -> str:
    saved = mine.savings[theirs.method]
    known = [saving for saving in saved if saving is not None]
    if len(known) < len(saved):
        return (
            f"With {len(known)} of {len(saved)} seeds both reached the target, so no saving is "
            "claimed."
        )
    saving = estimate(known)
    if saving.low is None or saving.high is None:
        return f"To the target it took {-saving.mean:+.0%} RST; one seed bears no conclusion."
    # Each of the two times may be late by up to a step of the grid, with every seed alike.
    margin = resolution_seconds / min(theirs.rst_to_target)
    low, high = saving.low - margin, saving.high + margin
    interval = (
        f"{CONFIDENCE:.0%} interval of the saving, widened by the grid, [{low:+.0%}, {high:+.0%}]"
    )
    if low > 0:
        return f"It reached the target with {saving.mean:.0%} less RST ({interval})."
    if high < 0:
        return f"It reached the target with {-saving.mean:.0%} MORE RST ({interval})."
    return f"No saving of RST to the target is shown ({interval})."
