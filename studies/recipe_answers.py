"""The answers of `no_train_no_gain.py`: differences with intervals, by question, and their page."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runs import changed, percent, relative_difference

from baselines.analysis.conditions import conditions
from baselines.analysis.intervals import Estimate, estimate
from baselines.analysis.verdict import too_few
from baselines.experiment import tuning
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find

BASELINE = "decayed"


@dataclass(frozen=True)
class Study:
    """What was compared: a comparison for each budget, charged and with FREE free."""

    charged: list[Comparison]
    free: list[Comparison]

    @property
    def recipes(self) -> list[str]:
        """The methods without an average, the baseline first."""
        return list(self.charged[0].plan.names[::2])


def averaged(name: str) -> str:
    """The name of a method with LAWA on top."""
    return find(f"{name}+lawa").name


def ends(comparison: Comparison, method: str) -> list[float]:
    """The metric on the test part at the end, by seed; infinite where a run failed."""
    return [run.test for run in comparison.of(method)]


def difference(comparison: Comparison, mine: str, theirs: str) -> Estimate | None:
    """By what share the first ends worse (above zero); None where a run of the two failed."""
    pair = ends(comparison, mine), ends(comparison, theirs)
    return relative_difference(*pair) if all(map(math.isfinite, [*pair[0], *pair[1]])) else None


def added_to(comparison: Comparison, recipe: str) -> Estimate | None:
    """By what share more, below 0, an average lowers the metric of a recipe than the baseline's."""
    names = (averaged(recipe), recipe, averaged(BASELINE), BASELINE)
    values = [ends(comparison, name) for name in names]
    if not all(map(math.isfinite, itertools.chain(*values))):
        return None
    a, b, c, d = ([math.log(value) for value in of] for of in values)
    found = [w - x - (y - z) for w, x, y, z in zip(a, b, c, d, strict=True)]
    return changed(estimate(found), math.expm1)


def in_words(value: Estimate | None, seeds: int) -> str:
    """A difference with its interval, and what that shows; a loss is said as plainly as a gain."""
    if value is None:
        return "a run FAILED"
    if value.low is None or value.high is None:
        return percent(value)
    if too_few(seeds):
        return f"too few seeds: {percent(value)}"
    shown = "BETTER" if value.high < 0 else "WORSE" if value.low > 0 else "no difference shown"
    return f"{shown}: {percent(value)}"


Rows = dict[str, list[Estimate | None]]


def in_short(rows: Rows, seeds: int, budgets: Sequence[float], titles: dict[str, str]) -> str:
    """Which cells of a table show a gain or a loss, and how many show none."""
    told: dict[str, dict[str, list[str]]] = {}
    for name, values in rows.items():
        for value, seconds in zip(values, budgets, strict=True):
            word = in_words(value, seeds).partition(":")[0]
            told.setdefault(word, {}).setdefault(titles[name], []).append(f"{seconds:g} s")
    said = []
    for word in ("BETTER", "WORSE", "a run FAILED"):
        for title, under in told.get(word, {}).items():
            said.append(f"{title} {word} under {', '.join(under)}")
    cells = sum(map(len, rows.values()))
    none = sum(map(len, told.get("no difference shown", {}).values()))
    return f"{'; '.join(said) or 'Nothing shown'}. No difference shown in {none} of {cells} cells."


def findings(study: Study) -> dict[str, Rows]:
    """The answers by question, each a row a method and a value a budget."""
    recipes, others = study.recipes, study.recipes[1:]
    names = [name for recipe in recipes for name in (recipe, averaged(recipe))]

    def against_baseline(comparisons: Sequence[Comparison]) -> Rows:
        return {
            name: [difference(each, name, BASELINE) for each in comparisons]
            for name in names
            if name != BASELINE
        }

    return {
        "Which pays at which budget?": against_baseline(study.charged),
        "Is it the idea, or its cost? With all but training steps free": against_baseline(
            study.free
        ),
        "Does an average add, on top of each?": {
            name: [difference(each, averaged(name), name) for each in study.charged]
            for name in recipes
        },
        "Does it add more than to the workload's own optimizer?": {
            name: [added_to(each, name) for each in study.charged] for name in others
        },
    }


ABOUT = """In each cell: by what share the metric on the test part ends higher (worse) or lower
(better) than that of {baseline}, of the same recipe without the average, or how much more the
average takes off; with the 95% interval over seeds, each by itself."""


def page(study: Study, answers: dict[str, Rows], command: str) -> str:
    """The page, in markdown."""
    plan = study.charged[0].plan
    seeds = len(plan.seeds)
    titles = study.charged[0].plan.titles
    lines = [
        f"# No Train No Gain's recipes on {plan.workload.name}",
        f"`{command}`",
        " ".join(ABOUT.format(baseline=find(BASELINE).title).split()),
    ]
    for question, rows in answers.items():
        head = ["method", *(f"{each.plan.budget.seconds:g} s" for each in study.charged)]
        body = [
            [titles[name], *(in_words(value, seeds) for value in values)]
            for name, values in rows.items()
        ]
        budgets = [each.plan.budget.seconds for each in study.charged]
        lines += [f"## {question}", in_short(rows, seeds, budgets, titles), _table([head, *body])]
    lines.append("## What tuning chose")
    for comparison in (*study.charged, *study.free):
        under = comparison.plan
        lines.append(f"### {under.budget.seconds:g} s{under.but_free}")
        if under.tried:
            lines += [_table(tuning.rows(under)), *tuning.edges(under)]
    lines += ["## Conditions", *(conditions(each) for each in (study.charged[0], study.free[0]))]
    return "\n\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def numbers(study: Study, answers: dict[str, Rows]) -> dict[str, Any]:
    """The answers, and every end, as values for JSON."""
    return {
        "workload": study.charged[0].plan.workload.name,
        "seeds": list(study.charged[0].plan.seeds),
        "budgets_seconds": [each.plan.budget.seconds for each in study.charged],
        "answers": {
            question: {
                name: [value and asdict(value) for value in values] for name, values in rows.items()
            }
            for question, rows in answers.items()
        },
        "test_metric": {
            said: [
                {
                    name: [each if math.isfinite(each) else "failed" for each in ends(one, name)]
                    for name in one.plan.names
                }
                for one in of
            ]
            for said, of in (("charged", study.charged), ("free", study.free))
        },
    }
