"""What the runs say: intervals over seeds, reference time to the target, and a verdict."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

from baselines.methods import METHODS
from timing import POLICIES, rst_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from baselines.comparison import Comparison

CONFIDENCE = 0.95
TARGET_METHOD = "constant"
BASELINES = ("constant", "decayed", "ema", "swa")
CLAIMS = (
    ("lawa", "constant"),
    ("lawa", "ema"),
    ("lawa", "swa"),
    ("lawa", "decayed"),
    ("lawa-decayed", "decayed"),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% t-interval; no interval (None) from one seed.

    Student's t, for a bootstrap of three seeds covers far less than it says.
    """

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {(self.high - self.low) / 2:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one value a seed; values must be finite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Row:
    """A method's line in the table; every tuple is by seed.

    Attributes:
        method: name in the table of methods.
        finals: metric at the end of the budget; infinite for a failed run.
        rst_to_target: reference seconds to the target; infinite if never reached.
        savings: for each baseline, 1 - RST of this method / RST of the baseline, paired by seed;
            None where either never reached the target.
    """

    method: str
    finals: tuple[float, ...]
    rst_to_target: tuple[float, ...]
    savings: dict[str, tuple[float | None, ...]]

    @property
    def title(self) -> str:
        """The method's title."""
        return METHODS[self.method].title


def rows(comparison: Comparison) -> list[Row]:
    """The table: a row a method, in the order of the plan.

    The target of a seed is what its constant-rate run ends with. Without one there is none, and
    every time to target is infinite.
    """
    seeds = comparison.plan.seeds
    targets = [run.final for run in comparison.of(TARGET_METHOD)] or [-math.inf] * len(seeds)
    # A failed run reaches nothing, and its infinite end is no target.
    targets = [target if math.isfinite(target) else -math.inf for target in targets]
    reached = {
        method: tuple(
            run.rst_to(target) for run, target in zip(comparison.of(method), targets, strict=True)
        )
        for method in comparison.plan.methods
    }
    return [
        Row(
            method=method,
            finals=tuple(run.final for run in comparison.of(method)),
            rst_to_target=reached[method],
            savings={
                baseline: tuple(map(_saving, reached[method], reached[baseline]))
                for baseline in BASELINES
                if baseline in reached and baseline != method
            },
        )
        for method in comparison.plan.methods
    ]


def _saving(mine: float, theirs: float) -> float | None:
    return 1 - mine / theirs if math.isfinite(mine) and math.isfinite(theirs) else None


def final_cell(row: Row) -> str:
    """The final metric with its interval, and how many runs failed."""
    good = [value for value in row.finals if math.isfinite(value)]
    failed = len(row.finals) - len(good)
    text = str(estimate(good)) if good else "no run ended"
    return f"{text} ({failed} of {len(row.finals)} failed)" if failed and good else text


def target_cell(row: Row) -> str:
    """Median reference seconds to the target, with the misses counted as never."""
    missed = sum(math.isinf(seconds) for seconds in row.rst_to_target)
    # The median of an even number is the later one: nothing is averaged with a miss.
    median = statistics.median_high(row.rst_to_target)
    text = "never" if math.isinf(median) else f"{median:.1f} s"
    return f"{text} ({missed} of {len(row.rst_to_target)} missed)" if missed else text


def saving_cell(row: Row, baseline: str) -> str:
    """The mean saving with its interval; only where both reached the target with every seed."""
    if baseline == row.method:
        return "·"
    savings = row.savings.get(baseline)
    if savings is None:
        return "-"
    known = [saving for saving in savings if saving is not None]
    if len(known) < len(savings):
        return f"reached {len(known)}/{len(savings)}"
    return percent(estimate(known))


def percent(value: Estimate) -> str:
    """A share in per cent with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:.0%}"
    return f"{value.mean:.0%} ± {(value.high - value.low) / 2:.0%}"


def verdict(comparison: Comparison) -> list[str]:
    """One plain sentence for each claim, and what its interval bears."""
    table = {row.method: row for row in rows(comparison)}
    sentences = []
    for method, baseline in CLAIMS:
        if method in table and baseline in table:
            sentences.append(_claim(table[method], table[baseline], comparison))
    for method, row in table.items():
        if METHODS[method].share < 1 and "lawa" in table:
            sentences.append(_midway_claim(row, comparison))
    if not sentences:
        sentences.append("No two methods of a claim were compared, so nothing is claimed.")
    return sentences


def _claim(mine: Row, theirs: Row, comparison: Comparison) -> str:
    metric = comparison.plan.workload.metric
    a, b = mine.title, theirs.title
    pairs = list(zip(mine.finals, theirs.finals, strict=True))
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return f"{a} against {b}: a run failed, so the end of the budget is not compared."
    gain = estimate([y - x for x, y in pairs])
    ends = f"{estimate(mine.finals).mean:.4f} against {estimate(theirs.finals).mean:.4f} {metric}"
    if gain.low is None or gain.high is None:
        ending = f"{a} ends at {ends} of {b}; one seed bears no conclusion"
    else:
        shown = f"{ends} (gain {gain.mean:+.4f}, {CONFIDENCE:.0%} interval "
        shown += f"[{gain.low:+.4f}, {gain.high:+.4f}] over {len(pairs)} paired seeds)"
        if gain.low > 0:
            ending = f"{a} ends BETTER than {b}: {shown}"
        elif gain.high < 0:
            ending = f"{a} ends WORSE than {b}: {shown}"
        else:
            ending = f"{a} and {b}: no difference shown at the end: {shown}"
    return f"{ending}. {_time_claim(mine, theirs, comparison.plan.resolution_seconds)}"


def _midway_claim(annealed: Row, comparison: Comparison) -> str:
    """LAWA in the middle of its run against a shorter run that was decayed to end there."""
    metric = comparison.plan.workload.metric
    end = comparison.plan.budget_of(annealed.method).seconds
    values = [run.value_at(end) for run in comparison.of("lawa")]
    a, b = METHODS["lawa"].title, f"a run {annealed.title}"
    if not all(map(math.isfinite, [*values, *annealed.finals])):
        return f"{a} against {b}: a run failed, or was not yet evaluated, so nothing is claimed."
    gain = estimate([y - x for x, y in zip(values, annealed.finals, strict=True)])
    ends = f"{estimate(values).mean:.4f} against {estimate(annealed.finals).mean:.4f} {metric}"
    if gain.low is None or gain.high is None:
        return f"After {end:g} s, {a} is at {ends} of {b}; one seed bears no conclusion."
    word = "not shown to differ from"
    if gain.low > 0 or gain.high < 0:
        word = "BETTER than" if gain.low > 0 else "WORSE than"
    return (
        f"After {end:g} s, {a} is {word} {b}: {ends} (gain {gain.mean:+.4f}, {CONFIDENCE:.0%} "
        f"interval [{gain.low:+.4f}, {gain.high:+.4f}] over {len(values)} paired seeds)."
    )


def _time_claim(mine: Row, theirs: Row, resolution_seconds: float) -> str:
    savings = mine.savings.get(theirs.method, ())
    known = [saving for saving in savings if saving is not None]
    if not savings or len(known) < len(savings):
        return "Not both reached the target with every seed, so no saving is claimed."
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


def markdown(comparison: Comparison) -> str:
    """Table and verdict, for the note on the parent run."""
    plan = comparison.plan
    table = rows(comparison)
    baselines = [name for name in BASELINES if name in plan.methods]
    head = ["method", f"final {plan.workload.metric}", "RST to target"]
    head += [f"saving vs {name}" for name in baselines]
    lines = [head]
    for row in table:
        cells = [row.title, final_cell(row), target_cell(row)]
        lines.append(cells + [saving_cell(row, name) for name in baselines])
    return "\n".join(
        [
            f"## {plan.workload.name}: {plan.budget.seconds:g} s of RST, {len(plan.seeds)} seeds",
            "",
            *_markdown_table(lines),
            "",
            *(f"- {sentence}" for sentence in verdict(comparison)),
            "",
            *_markdown_table(totals(comparison)),
            "",
            f"_{conditions(comparison)}_",
        ]
    )


def _markdown_table(table: list[list[str]]) -> list[str]:
    """The lines of a table whose first row is its head."""
    head, *body = ["| " + " | ".join(cells) + " |" for cells in table]
    return [head, "|" + "---|" * len(table[0]), *body]


def conditions(comparison: Comparison) -> str:
    """Under which conditions the table holds."""
    plan = comparison.plan
    return (
        f"Budget {plan.budget.seconds:g} s of reference system time a run, on "
        f"{comparison.profile.machine}; {len(plan.seeds)} seed(s), "
        f"{CONFIDENCE:.0%} t-intervals over seeds, lower is better. Target: what the "
        f"constant rate ends with, seed by seed; times to it are known to "
        f"{plan.resolution_seconds:.2g} s. Peak rate "
        f"{plan.settings.learning_rate:g} for all, untuned; k={plan.settings.k}, "
        f"every={plan.settings.every}. Policy {plan.policy}. {_known_to(comparison)}"
    )


def _known_to(comparison: Comparison) -> str:
    """How well the reference itself is known: chance between its processes, and closure."""
    profile = comparison.profile
    if profile.process_count < 2:
        return "The profile rests on one process, so how far its seconds are chance is not known."
    known = rst_interval(comparison.runs[0].counts, profile, comparison.plan.policy, CONFIDENCE)
    return (
        f"The profile's {profile.process_count} processes give a run's seconds to "
        f"±{known.half_width:.1%}, with a closure of {profile.closure:+.1%}."
    )


def totals(comparison: Comparison) -> list[list[str]]:
    """Reference seconds of each method under each policy, means over seeds; the first row heads."""
    head = ["method", *(f"{policy}, s" for policy in POLICIES)]
    body = [
        [
            METHODS[method].title,
            *(
                f"{statistics.fmean(run.totals[policy] for run in comparison.of(method)):.3f}"
                for policy in POLICIES
            ),
        ]
        for method in comparison.plan.methods
    ]
    return [head, *body]


def ranking(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Each method's final metric and its rank by the mean, a column a budget; the first row heads.

    A method with a failed run has no rank.
    """
    tables = [{row.method: row for row in rows(comparison)} for comparison in comparisons]
    head = ["method", *(f"{c.plan.budget.seconds:g} s" for c in comparisons)]
    ranks = []
    for table in tables:
        whole = {m: row for m, row in table.items() if all(map(math.isfinite, row.finals))}
        order = sorted(whole, key=lambda method: statistics.fmean(whole[method].finals))
        ranks.append({method: f"({place})" for place, method in enumerate(order, start=1)})
    return [head] + [
        [METHODS[method].title]
        + [
            f"{final_cell(table[method])} {rank.get(method, '(-)')}"
            for table, rank in zip(tables, ranks, strict=True)
        ]
        for method in comparisons[0].plan.methods
    ]


def columns(comparison: Comparison) -> dict[str, list[str | float]]:
    """The table by column, unrounded, a line a method and seed; misses are "never"."""
    table: dict[str, list[str | float]] = {}
    for row in rows(comparison):
        for seed, final, seconds in zip(
            comparison.plan.seeds, row.finals, row.rst_to_target, strict=True
        ):
            line: dict[str, str | float] = {
                "method": row.method,
                "seed": seed,
                "final_metric": final if math.isfinite(final) else "failed",
                "rst_to_target_seconds": seconds if math.isfinite(seconds) else "never",
            }
            for key, value in line.items():
                table.setdefault(key, []).append(value)
    return table
