"""What the runs say: intervals over seeds, reference time to the target, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from baselines.analysis.intervals import Estimate, estimate, median
from baselines.experiment import tuning
from baselines.experiment.comparison import Comparison, Plan
from baselines.methods.method import METHODS, title_of
from timing import POLICIES, rst_interval
from timing.statistics import CONFIDENCE, median_coverage

NO_RUN = "no run ended"
TARGET_METHOD = "constant"
BASELINES = ("constant", "decayed", "ema", "swa", "schedule-free")
CLAIMS = (
    ("lawa", "constant"),
    ("lawa", "ema"),
    ("lawa", "swa"),
    ("lawa", "decayed"),
    ("lawa", "schedule-free"),
    ("lawa-decayed", "decayed"),
)


@dataclass(frozen=True)
class Row:
    """A method's line in the table; every tuple is by seed.

    Attributes:
        method: its name.
        finals: metric on the validation part at the end of the budget; infinite for a failed run.
        tests: the same on the test part; empty if the plan does not read it.
        rst_to_target: reference seconds to the target; infinite if never reached.
        savings: for each baseline, 1 - RST of this method / RST of the baseline, paired by seed;
            None where either never reached the target.
    """

    method: str
    finals: tuple[float, ...]
    tests: tuple[float, ...]
    rst_to_target: tuple[float, ...]
    savings: dict[str, tuple[float | None, ...]]

    @property
    def title(self) -> str:
        """The method's title."""
        return title_of(self.method)

    @property
    def ends(self) -> tuple[float, ...]:
        """What the end of the budget is judged by: the test part, or else the validation part."""
        return self.tests or self.finals


def rows(comparison: Comparison) -> list[Row]:
    """The table: a row a method, in the order of the plan.

    The target of a seed is what its constant-rate run ends with on the validation part. Without one
    there is none, and every time to target is infinite.
    """
    plan = comparison.plan
    targets = [run.final for run in comparison.of(TARGET_METHOD)] or [-math.inf] * len(plan.seeds)
    # A failed run reaches nothing, and its infinite end is no target.
    targets = [target if math.isfinite(target) else -math.inf for target in targets]
    reached = {
        method: tuple(
            run.rst_to(target) for run, target in zip(comparison.of(method), targets, strict=True)
        )
        for method in plan.methods
    }
    return [
        Row(
            method=method,
            finals=tuple(run.final for run in comparison.of(method)),
            tests=tuple(run.test for run in comparison.of(method)) if plan.read_test else (),
            rst_to_target=reached[method],
            savings={
                baseline: tuple(map(_saving, reached[method], reached[baseline]))
                for baseline in BASELINES
                if baseline in reached and baseline != method
            },
        )
        for method in plan.methods
    ]


def _saving(mine: float, theirs: float) -> float | None:
    return 1 - mine / theirs if math.isfinite(mine) and math.isfinite(theirs) else None


def metric_cell(values: Sequence[float]) -> str:
    """A metric at the end of the budget with its interval, and how many runs failed."""
    good = [value for value in values if math.isfinite(value)]
    failed = len(values) - len(good)
    text = str(estimate(good)) if good else NO_RUN
    return f"{text} ({failed} of {len(values)} failed)" if failed and good else text


def target_cell(row: Row) -> str:
    """Median reference seconds to the target with its interval, the misses counted as never."""
    missed = sum(math.isinf(seconds) for seconds in row.rst_to_target)
    found = median(row.rst_to_target)
    text = seconds_cell(found.median)
    if found.low is not None and found.high is not None and found.low < math.inf:
        text += f" [{seconds_cell(found.low)}, {seconds_cell(found.high)}]"
    return f"{text} ({missed} of {len(row.rst_to_target)} missed)" if missed else text


def seconds_cell(seconds: float) -> str:
    """Reference seconds, or never."""
    return "never" if math.isinf(seconds) else f"{seconds:.{2 if seconds < 10 else 1}f} s"


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


def results(comparison: Comparison) -> list[list[str]]:
    """The end of the budget and the time to target, a line a method; the first row heads."""
    metric = comparison.plan.workload.metric
    parts = ["test", "validation"] if comparison.plan.read_test else ["validation"]
    seeds = len(comparison.plan.seeds)
    # Not the 95% of all else, so it is said here.
    interval = f" (median, {median_coverage(seeds):.0%} interval)" if seeds > 1 else ""
    return [
        ["method", *(f"final {part} {metric}" for part in parts), f"RST to target{interval}"],
        *(
            [
                row.title,
                *([metric_cell(row.tests)] if row.tests else []),
                metric_cell(row.finals),
                target_cell(row),
            ]
            for row in rows(comparison)
        ),
    ]


def savings(comparison: Comparison) -> list[list[str]]:
    """Shares of RST saved on the way to the target, a column a baseline; the first row heads."""
    baselines = [name for name in BASELINES if name in comparison.plan.methods]
    return [
        ["method", *(f"saved vs {name}" for name in baselines)],
        *([row.title, *(saving_cell(row, name) for name in baselines)] for row in rows(comparison)),
    ]


def verdict(comparison: Comparison) -> list[str]:
    """One plain sentence for each claim, and what its interval bears."""
    table = {row.method: row for row in rows(comparison)}
    own = [(name, baseline) for name in table if name not in METHODS for baseline in BASELINES]
    sentences = [
        _claim(table[method], table[baseline], comparison)
        for method, baseline in (*CLAIMS, *own)
        if method in table and baseline in table
    ]
    shares = {run.method: run.share for run in comparison.runs}
    for method, row in table.items():
        if shares[method] < 1 and "lawa" in table:
            sentences.append(_midway_claim(row, shares[method], comparison))
    if not sentences:
        sentences.append("No two methods of a claim were compared, so nothing is claimed.")
    return sentences


def _claim(mine: Row, theirs: Row, comparison: Comparison) -> str:
    ending = _end_claim(mine, theirs, comparison)
    return f"{ending} {_time_claim(mine, theirs, comparison.plan.resolution_seconds)}"


def _end_claim(mine: Row, theirs: Row, comparison: Comparison) -> str:
    """Of the end of the budget."""
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


def _midway_claim(annealed: Row, share: float, comparison: Comparison) -> str:
    """LAWA in the middle of its run against a shorter run that was decayed to end there.

    On the validation part, for the test part is read only at the end of a run.
    """
    end = comparison.plan.budget.seconds * share
    values = [run.value_at(end) for run in comparison.of("lawa")]
    a, b = title_of("lawa"), f"a run {annealed.title}"
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
    """By how much the first is lower, paired by seed; and both, in words."""
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
            f"Both reached the target with {len(known)} of {len(saved)} seeds, so no saving is "
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


def markdown(comparison: Comparison) -> str:
    """Tables and verdict, for the note on the parent run."""
    plan = comparison.plan
    tables = [savings(comparison), totals(comparison)]
    if plan.tried:
        tables.append(tuning.rows(plan))
    return "\n".join(
        [
            f"## {plan.workload.name}: {plan.budget.seconds:g} s of RST, {len(plan.seeds)} seeds",
            "",
            *_markdown_table(results(comparison)),
            "",
            *(f"- {sentence}" for sentence in verdict(comparison)),
            "",
            *(line for table in tables for line in (*_markdown_table(table), "")),
            f"_{conditions(comparison)}_",
        ]
    )


def _markdown_table(table: list[list[str]]) -> list[str]:
    """The lines of a table whose first row is its head."""
    head, *body = ["| " + " | ".join(cells) + " |" for cells in table]
    return [head, "|" + "---|" * len(table[0]), *body]


def conditions(comparison: Comparison) -> str:
    """Under which conditions the tables and the verdict hold."""
    plan = comparison.plan
    return (
        f"Budget {plan.budget.seconds:g} s of reference system time a run, on "
        f"{comparison.profile.machine}; lower is better. {_intervals(len(plan.seeds))} "
        f"{_parts(plan)} {_target(comparison)} {_tuning(plan)} Policy {plan.policy}. "
        f"{_known_to(comparison)}"
    )


def _intervals(seeds: int) -> str:
    if seeds < 2:
        return "One seed, so no interval."
    return (
        f"{seeds} seeds; means and savings with {CONFIDENCE:.0%} t-intervals over them, each "
        "sentence's by itself; a median time with that of the sign test, which here covers the "
        f"true one {median_coverage(seeds):.0%} of the time."
    )


def _parts(plan: Plan) -> str:
    if not plan.read_test:
        return "All on the validation part."
    return (
        "The end of the budget is judged on the test part, read once a run; all else on the "
        "validation part."
    )


def _target(comparison: Comparison) -> str:
    """What a run is to reach, and with how many seeds there was nothing to reach."""
    plan = comparison.plan
    if TARGET_METHOD not in plan.methods:
        return "Without the constant rate there is no target, and every time to it counts as never."
    said = (
        "Target: what the constant rate ends with on the validation part, seed by seed; times to "
        f"it are known to {plan.resolution_seconds:.2g} s."
    )
    failed = sum(run.failure is not None for run in comparison.of(TARGET_METHOD))
    if failed:
        said += (
            f" With {failed} of {len(plan.seeds)} seeds the constant rate failed, so there was none"
            " and every time to it counts as never."
        )
    return said


def _tuning(plan: Plan) -> str:
    """What was set for all, or tried for each."""
    if plan.tried:
        seconds = math.fsum(plan.tuning_rst_seconds.values())
        return (
            f"Tuned on the validation part, {plan.trials} trial(s) a method with a seed of their "
            f"own and the whole budget each: {seconds:.4g} s of RST that are charged to no run."
        )
    shared = plan.settings
    common = f"k={shared.k}, every={shared.every}"
    if plan.tuned:
        rates = ", ".join(f"{plan.settings_of(m).learning_rate:g} for {m}" for m in plan.methods)
        return f"Settings of their own: peak rate {rates}; else {common}."
    return f"Peak rate {shared.learning_rate:g} for all, untuned; {common}."


def _known_to(comparison: Comparison) -> str:
    """Return how well the reference is known: chance between processes, and additivity error."""
    profile = comparison.profile
    if len(profile.processes) < 2:
        return "The profile rests on one process, so how far its seconds are chance is not known."
    ended = [run for run in comparison.runs if not run.failure]
    if not ended:
        return "No run ended."
    known = rst_interval(ended[0].counts, profile, comparison.plan.policy, CONFIDENCE)
    return (
        f"The profile's {len(profile.processes)} processes give a run's seconds to "
        f"±{known.half_width:.1%}, with an additivity error of {profile.additivity_error:+.1%}."
    )


def totals(comparison: Comparison) -> list[list[str]]:
    """Reference seconds of each method under each policy; the first row heads.

    Means over the seeds whose runs ended: what a failed run was charged until then says nothing.
    """
    head = ["method", *(f"{policy}, s" for policy in POLICIES)]
    body = []
    for method in comparison.plan.methods:
        runs = comparison.of(method)
        ended = [run for run in runs if not run.failure]
        means = [
            f"{statistics.fmean(run.totals[policy] for run in ended):.3f}" if ended else NO_RUN
            for policy in POLICIES
        ]
        failed = len(runs) - len(ended)
        if failed and ended:
            means[0] += f" ({failed} of {len(runs)} failed)"
        body.append([title_of(method), *means])
    return [head, *body]


def ranking(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Each method's end of the budget and its rank by the mean, a column a budget.

    Judged on the test part, or on the validation part if that was not read. A method with a failed
    run has no rank. The first row heads.
    """
    tables = [{row.method: row for row in rows(comparison)} for comparison in comparisons]
    head = ["method", *(f"{c.plan.budget.seconds:g} s" for c in comparisons)]
    ranks = []
    for table in tables:
        whole = {m: row for m, row in table.items() if all(map(math.isfinite, row.ends))}
        order = sorted(whole, key=lambda method: statistics.fmean(whole[method].ends))
        ranks.append({method: f"({place})" for place, method in enumerate(order, start=1)})
    return [head] + [
        [title_of(method)]
        + [
            f"{metric_cell(table[method].ends)} {rank.get(method, '(-)')}"
            for table, rank in zip(tables, ranks, strict=True)
        ]
        for method in comparisons[0].plan.methods
    ]


def columns(comparison: Comparison) -> dict[str, list[str | float]]:
    """The table by column, unrounded, a line a method and seed.

    Misses are "never"; a test part that was not read has no column.
    """
    table: dict[str, list[str | float]] = {}
    for row in rows(comparison):
        for place, seed in enumerate(comparison.plan.seeds):
            line: dict[str, str | float] = {
                "method": row.method,
                "seed": seed,
                "final_metric": _or(row.finals[place], "failed"),
                "rst_to_target_seconds": _or(row.rst_to_target[place], "never"),
            }
            if row.tests:
                line["test_metric"] = _or(row.tests[place], "failed")
            for key, value in line.items():
                table.setdefault(key, []).append(value)
    return table


def _or(value: float, word: str) -> float | str:
    """The value; a word in place of what JSON cannot say."""
    return value if math.isfinite(value) else word
