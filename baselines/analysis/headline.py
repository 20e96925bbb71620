"""Say what a comparison shows in three sentences and one a reading, for a person in a hurry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from baselines.analysis.tables import TARGET_METHOD, Row, rows
from baselines.analysis.verdict import gain, saving, too_few
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.methods.averagers.base import Live
from baselines.methods.names import NAMES
from baselines.training.readings import NOT_FINITE
from baselines.training.rounding import FLOAT

# More of them are counted and not named.
_NAMED = 3


def headline(comparison: Comparison) -> list[str]:
    """Return what ends best, how the method in question stands to all others, and what it saved.

    At most three sentences, then a line for each rounding of the weights: what ends best there.
    A method whose run failed, or that has a part of the budget alone, is not judged.
    """
    first, *more = _sentences(comparison)
    free = ", ".join(comparison.plan.free)
    return [
        _after(f"With {free} FREE", first) if free else first,
        *more,
        *(_read_as(comparison, reading) for reading in comparison.plan.read[1:]),
    ]


def _read_as(comparison: Comparison, reading: str) -> str:
    return _after(f"Read as {reading}", " ".join(_sentences(comparison, reading)))


def _after(lead: str, said: str) -> str:
    """Return a sentence after a lead and a colon; names of methods keep their first letter."""
    ours = said.startswith(("By the", "No method"))
    return f"{lead}: {said[0].lower() if ours else said[0]}{said[1:]}"


def _sentences(comparison: Comparison, reading: str = FLOAT) -> list[str]:
    plan = comparison.plan
    table = {row.method: row for row in rows(comparison, reading)}
    judged = [
        row
        for row in table.values()
        if all(map(math.isfinite, row.ends)) and plan.method(row.method).share == 1
    ]
    if not judged:
        what = "ended" if reading == FLOAT else "has a finite metric"
        return [f"No method {what} with every seed, so nothing is compared."]
    badness = plan.workload.badness
    best = min(judged, key=lambda row: badness(statistics.fmean(row.ends)))
    end = f"{statistics.fmean(best.ends):.4f} {plan.workload.metric}"
    left_out = _left_out(list(table.values()))
    if few := too_few(len(plan.seeds)):
        first = f"By the mean alone {best.title} ends best, at {end}{left_out}."
        # Once is enough.
        warning = [f"{few[0].upper()}{few[1:]}; give five (--seeds 5)."]
        return [*(warning if reading == FLOAT else ()), first]
    said = [f"{_best(best, judged, end, badness)}{left_out}."]
    name = _in_question(plan)
    row = next((row for row in judged if row.method == name), None)
    if row is None:
        return said
    if row is not best:
        said.append(_against_all(row, judged, badness))
    if TARGET_METHOD in table and name != TARGET_METHOD and reading == FLOAT:
        said.append(_on_the_way(row, table[TARGET_METHOD], plan.resolution_seconds))
    return said


def _left_out(table: Sequence[Row]) -> str:
    """Return which methods have no metric with some seed, and why; empty where none."""
    failed = [row.title for row in table if any(map(math.isinf, row.ends))]
    unknown = [row.title for row in table if any(map(math.isnan, row.ends))]
    said = f"; a run of {_listed(failed)} FAILED" if failed else ""
    return said + (f"; {_listed(unknown)} {NOT_FINITE.upper()} with a seed" if unknown else "")


def _in_question(plan: Plan) -> str | None:
    """Return the method that the comparison is about: the user's own, or LAWA, or an average."""
    own = [method.name for method in plan.methods if method.files]
    sums = [method.name for method in plan.methods if method.name not in NAMES]
    averages = [m.name for m in plan.methods if not isinstance(m.averager, Live)]
    lawa = [name for name in plan.names if name == "lawa"]
    return next(iter([*own, *lawa, *sums, *averages]), None)


def _best(best: Row, judged: Sequence[Row], end: str, badness: Callable[[float], float]) -> str:
    others = [row for row in judged if row is not best]
    like = [row.title for row in others if not gain(best.ends, row.ends, badness).is_above_zero]
    if not others:
        return f"{best.title} ends at {end}"
    if not like:
        whom = _the(others[0].title) if len(others) == 1 else f"all {len(others)} others"
        return f"{best.title} ends best, at {end}: BETTER than {whom}"
    whom = "any other" if len(like) == len(others) > 1 else _listed(like)
    rest = len(others) - len(like)
    worse = f", and the {rest} others end WORSE" if rest > 1 else ", and the other ends WORSE"
    return (
        f"{best.title} has the best mean at the end, {end}: no difference to {whom} is shown"
        f"{worse if rest else ''}"
    )


def _against_all(mine: Row, judged: Sequence[Row], badness: Callable[[float], float]) -> str:
    gains = {row.title: gain(mine.ends, row.ends, badness) for row in judged if row is not mine}
    worse = [title for title, each in gains.items() if each.is_below_zero]
    better = [title for title, each in gains.items() if each.is_above_zero]
    like = [title for title in gains if title not in {*worse, *better}]
    parts = [f"LOSES at the end to {_listed(worse)}"] if worse else []
    parts += [f"{'' if worse else 'at the end '}beats {_listed(better)}"] if better else []
    if not parts:
        return f"{mine.title} and {_listed(like)}: no difference is shown at the end."
    shown = f"; no difference to {_listed(like)} is shown" if like else ""
    return f"{mine.title} {', and '.join(parts)}{shown}."


def _on_the_way(mine: Row, target: Row, resolution_seconds: float) -> str:
    found = saving(mine, target, resolution_seconds)
    where = f"where {_the(target.title)} ends"
    if found is None:
        missed = sum(each is None for each in mine.savings[target.method])
        return (
            f"{mine.title} did not come to {where} with {missed} of {len(mine.ends)} seeds, so no "
            "saving is claimed."
        )
    interval = f"[{found.low:+.0%}, {found.high:+.0%}]"
    if found.is_above_zero:
        return f"{mine.title} came to {where} with {found.mean:.0%} less RST {interval}."
    if found.is_below_zero:
        return (
            f"{mine.title} LOSES time: it came to {where} with {-found.mean:.0%} MORE RST, a "
            f"saving of {interval}."
        )
    return f"{mine.title} is not shown to save RST on the way to {where} {interval}."


def _the(title: str) -> str:
    """Return a title within a sentence: a rate alone is no name."""
    return f"the {title}" if title.endswith(" rate") and " of the " not in title else title


def _listed(titles: Sequence[str]) -> str:
    titles = [*map(_the, titles)]
    if len(titles) > _NAMED + 1:
        return f"{', '.join(titles[:_NAMED])} and {len(titles) - _NAMED} more"
    *first, last = titles
    return f"{', '.join(first)} and {last}" if first else last
