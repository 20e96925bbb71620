"""Put the runs of a comparison into tables: intervals over seeds, reference time to the target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from baselines.analysis.intervals import Estimate, estimate, median
from baselines.experiment.comparison import Comparison
from baselines.training.readings import NOT_FINITE
from baselines.training.rounding import FLOAT
from timing.statistics import median_coverage

NO_RUN = "no run ended"
TARGET_METHOD = "constant"
BASELINES = ("constant", "decayed", "ema", "swa", "schedule-free")


@dataclass(frozen=True)
class Row:
    """Holds a method's line in the table; every tuple is by seed.

    Attributes:
        method: its name.
        title: in tables and plots.
        finals: metric on the validation part at the end of the budget, of the weights read in one
            way; infinite for a failed run, NaN where rounded weights have no finite metric.
        tests: the same on the test part; empty if the plan does not read it. What follows is of the
            weights read in float.
        rst_to_target: reference seconds to the target; infinite if never reached.
        savings: for each baseline, 1 - RST of this method / RST of the baseline, paired by seed;
            None where either never reached the target.
    """

    method: str
    title: str
    finals: tuple[float, ...]
    tests: tuple[float, ...]
    rst_to_target: tuple[float, ...]
    savings: dict[str, tuple[float | None, ...]]

    @property
    def ends(self) -> tuple[float, ...]:
        """Return what the end is judged by: the test part, or else the validation part."""
        return self.tests or self.finals


def rows(comparison: Comparison, reading: str = FLOAT) -> list[Row]:
    """Return a row a method, in the order of the plan, with the ends of the weights read so.

    The target of a seed is what its constant-rate run ends with on the validation part. Without one
    there is none, nor where that run failed, and every time to target is infinite.
    """
    plan = comparison.plan
    targets = [run.final for run in comparison.of(TARGET_METHOD)] or [math.inf] * len(plan.seeds)
    reached = {
        method: tuple(
            run.rst_to(target, plan.workload.badness)
            for run, target in zip(comparison.of(method), targets, strict=True)
        )
        for method in plan.names
    }
    return [
        Row(
            method=method,
            title=title,
            finals=tuple(run.final_as(reading) for run in comparison.of(method)),
            tests=tuple(run.test_as(reading) for run in comparison.of(method) if plan.read_test),
            rst_to_target=reached[method],
            savings={
                baseline: tuple(map(_saving, reached[method], reached[baseline]))
                for baseline in BASELINES
                if baseline in reached and baseline != method
            },
        )
        for method, title in plan.titles.items()
    ]


def _saving(mine: float, theirs: float) -> float | None:
    return 1 - mine / theirs if math.isfinite(mine) and math.isfinite(theirs) else None


def metric_cell(values: Sequence[float]) -> str:
    """Return a metric at the end of the budget with its interval, and how many runs have none."""
    good = [value for value in values if math.isfinite(value)]
    unknown = sum(map(math.isnan, values))
    if not good:
        return NOT_FINITE if unknown else NO_RUN
    missing = {"failed": len(values) - len(good) - unknown, NOT_FINITE: unknown}
    said = [f"{count} of {len(values)} {word}" for word, count in missing.items() if count]
    text = str(estimate(good))
    return f"{text} ({', '.join(said)})" if said else text


def target_cell(row: Row) -> str:
    """Return the median reference seconds to the target with its interval, misses as never."""
    missed = sum(math.isinf(seconds) for seconds in row.rst_to_target)
    found = median(row.rst_to_target)
    text = seconds_cell(found.median)
    if found.low is not None and found.high is not None and found.low < math.inf:
        text += f" [{seconds_cell(found.low)}, {seconds_cell(found.high)}]"
    return f"{text} ({missed} of {len(row.rst_to_target)} missed)" if missed else text


def seconds_cell(seconds: float) -> str:
    """Return reference seconds, or never."""
    return "never" if math.isinf(seconds) else f"{seconds:.{2 if seconds < 10 else 1}f} s"


def saving_cell(row: Row, baseline: str) -> str:
    """Return the mean saving with its interval, where both reached the target with every seed."""
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
    """Return a share in per cent with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:.0%}"
    return f"{value.mean:.0%} ± {(value.high - value.low) / 2:.0%}"


def results(comparison: Comparison) -> list[list[str]]:
    """Return the end of the budget and the time to target, the best first; the first row heads.

    Ranked by the mean, on the test part, or on the validation part if that was not read.
    """
    part = "test" if comparison.plan.read_test else "validation"
    seeds = len(comparison.plan.seeds)
    readings = comparison.plan.read[1:]
    head = ["rank", "method", f"final {part} {comparison.plan.workload.metric}"]
    head += [*(f"read as {reading}" for reading in readings), "RST to target"]
    if seeds > 1:
        # Not the 95% of all else, so it is said here.
        head[-1] += f" ({median_in_words(seeds)}, {median_coverage(seeds):.0%} interval)"
    ends = [{row.method: row.ends for row in rows(comparison, each)} for each in readings]
    table = rows(comparison)
    places = ranks({row.method: row.ends for row in table}, comparison.plan.workload.badness)
    order = sorted(table, key=lambda row: places.get(row.method, len(table) + 1))
    return [
        head,
        *(
            [
                str(places.get(row.method, "-")),
                row.title,
                metric_cell(row.ends),
                *(metric_cell(each[row.method]) for each in ends),
                target_cell(row),
            ]
            for row in order
        ),
    ]


def ranks(ends: Mapping[str, Sequence[float]], badness: Callable[[float], float]) -> dict[str, int]:
    """Return the place of each method by the mean of its ends, from 1; none where a run failed."""
    whole = {method: values for method, values in ends.items() if all(map(math.isfinite, values))}
    order = sorted(whole, key=lambda method: badness(statistics.fmean(whole[method])))
    return {method: place for place, method in enumerate(order, start=1)}


def median_in_words(count: int) -> str:
    """Return which median of so many seeds: of an even number nothing is averaged with a miss."""
    return "median" if count % 2 else "later of the two medians"


def validation(comparison: Comparison) -> list[list[str]]:
    """Return the end on the validation part, where the test part judges; the first row heads."""
    metric = comparison.plan.workload.metric
    return [
        ["method", f"final validation {metric}"],
        *([row.title, metric_cell(row.finals)] for row in rows(comparison)),
    ]


def savings(comparison: Comparison) -> list[list[str]]:
    """Return the shares of RST saved to the target, a column a baseline; the first row heads."""
    baselines = [name for name in BASELINES if name in comparison.plan.names]
    return [
        ["method", *(f"saved vs {name}" for name in baselines)],
        *([row.title, *(saving_cell(row, name) for name in baselines)] for row in rows(comparison)),
    ]


def ranking(comparisons: Sequence[Comparison], reading: str = FLOAT) -> list[list[str]]:
    """Return each method's end of the budget, read so, and its rank by the mean, a column a budget.

    Judged on the test part, or on the validation part if that was not read. A method with a failed
    run has no rank. The first row heads.
    """
    tables = [{row.method: row for row in rows(comparison, reading)} for comparison in comparisons]
    head = ["method", *(f"{c.plan.budget.seconds:g} s" for c in comparisons)]
    badness = comparisons[0].plan.workload.badness
    places = [
        ranks({method: row.ends for method, row in table.items()}, badness) for table in tables
    ]
    return [head] + [
        [title]
        + [
            f"{metric_cell(table[method].ends)} ({place.get(method, '-')})"
            for table, place in zip(tables, places, strict=True)
        ]
        for method, title in comparisons[0].plan.titles.items()
    ]


def columns(comparison: Comparison) -> dict[str, list[str | float]]:
    """Return the table by column, unrounded, a line a method and seed.

    Misses are "never"; a test part that was not read has no column. The metric of weights that are
    read otherwise has a column for each reading.
    """
    plan = comparison.plan
    read = {reading: rows(comparison, reading) for reading in plan.read}
    table: dict[str, list[str | float]] = {}
    for number, row in enumerate(read[FLOAT]):
        for place, seed in enumerate(plan.seeds):
            line: dict[str, str | float] = {
                "method": row.method,
                "seed": seed,
                "final_metric": or_word(row.finals[place]),
                "rst_to_target_seconds": _or(row.rst_to_target[place], "never"),
            }
            for reading, found in read.items():
                end = "" if reading == FLOAT else f"_as_{reading}"
                line[f"final_metric{end}"] = or_word(found[number].finals[place])
                if row.tests:
                    line[f"test_metric{end}"] = or_word(found[number].tests[place])
            for key, value in line.items():
                table.setdefault(key, []).append(value)
    return table


def or_word(value: float) -> float | str:
    """Return a metric; a word in place of one that is not finite."""
    return _or(value, NOT_FINITE if math.isnan(value) else "failed")


def _or(value: float, word: str) -> float | str:
    """Return the value; a word in place of what JSON cannot say."""
    return value if math.isfinite(value) else word
