"""Show what rounding does to the weights of each method, and who is ahead of whom after it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from baselines.analysis.intervals import estimate
from baselines.analysis.tables import NO_RUN, Row, rows
from baselines.analysis.verdict import gain
from baselines.experiment.comparison import Comparison
from baselines.training.rounding import Rounded

# What averages are to be compared with; each that was compared has a table.
AGAINST = ("constant", "decayed")
NOT_COMPARED = "not compared"
# A relative rounding error of the weights that some metric feels.
_FELT = 0.01
# The title of their table.
ERRORS = "Rounding error of the weights, \u2016w \u2212 rounded w\u2016 over \u2016w\u2016"


def gains(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Return what each method gains on a baseline by reading, paired by seed; a first row heads.

    One table for each of `AGAINST` that was compared, by its title. Without roundings there is
    none.
    """
    plan = comparison.plan
    if not plan.roundings:
        return {}
    read = {
        reading: {row.method: row for row in rows(comparison, reading)} for reading in plan.read
    }
    return {
        f"Gain on {plan.titles[baseline]} at the end, by how the weights are read{plan.but_free}": [
            ["method", *plan.read],
            *(
                [
                    plan.titles[name],
                    *(
                        _cell(row[name], row[baseline], plan.workload.badness)
                        for row in read.values()
                    ),
                ]
                for name in plan.names
                if name != baseline
            ),
        ]
        for baseline in AGAINST
        if baseline in plan.names and len(plan.names) > 1
    }


def _cell(mine: Row, theirs: Row, badness: Callable[[float], float]) -> str:
    if not all(map(math.isfinite, (*mine.ends, *theirs.ends))):
        return NOT_COMPARED
    found = gain(mine.ends, theirs.ends, badness)
    if found.seeds == 1:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def rounding_errors(comparison: Comparison) -> list[list[str]]:
    """Return the relative rounding error of the weights by reading; the first row heads.

    Of the weights that runs end with, means over those that ended with their intervals. It tells
    smaller weights from flatter minima: both may stand behind a smaller loss.
    """
    plan = comparison.plan
    if not plan.roundings:
        return []
    body = []
    for name in plan.names:
        ended = [run.rounded for run in comparison.of(name) if run.rounded]
        errors = [[each[reading].relative_error for each in ended] for reading in plan.read[1:]]
        body.append([plan.titles[name], *map(_percent, errors)])
    return [["method", *plan.read[1:]], *body]


def _percent(values: list[float]) -> str:
    if not values:
        return NO_RUN
    if not all(map(math.isfinite, values)):
        return f"{statistics.fmean(values)}"
    found = estimate([100 * value for value in values])
    around = (
        "" if found.low is None or found.high is None else f" ± {(found.high - found.low) / 2:.2f}"
    )
    return f"{found.mean:.2f}{around} %"


def what_is_rounded(comparison: Comparison) -> list[Rounded]:
    """Return what each rounding did to the weights of the first run that ended; none before one."""
    return list(next((run.rounded for run in comparison.runs if run.rounded), {}).values())


def conditions(comparison: Comparison) -> list[str]:
    """Return what was rounded and at whose cost, in a sentence; none without roundings."""
    plan = comparison.plan
    if not plan.roundings:
        return []
    said = "; ".join(map(str, what_is_rounded(comparison))) or "no run ended"
    return [
        f"Read as {', '.join(plan.read[1:])}: copies of the weights that a method reports, rounded "
        f"and evaluated off the clock, charged to no run ({said}).",
        *_unchanged(comparison),
    ]


def _unchanged(comparison: Comparison) -> list[str]:
    """Return a warning of the roundings that change weights and no metric; none without them."""
    ended = [run for run in comparison.runs if run.rounded]
    same = [
        reading
        for reading in comparison.plan.read[1:]
        if ended
        and max(run.rounded[reading].relative_error for run in ended) > _FELT
        and all(point.value_as(reading) == point.value for run in ended for point in run.points)
    ]
    return [
        f"WARNING: read as {reading}, each metric is that of float to the last digit, though the "
        "weights differ: evaluate(model) must use the model that it is given, and no other."
        for reading in same
    ]
