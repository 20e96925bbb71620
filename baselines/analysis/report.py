"""Put together a comparison's report: what it shows in a few lines, tables, and its conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.analysis import ablation, measured, read_as
from baselines.analysis.charges import RSE, paid_once, totals
from baselines.analysis.conditions import conditions
from baselines.analysis.headline import headline
from baselines.analysis.tables import results, savings, validation
from baselines.analysis.verdict import verdict
from baselines.experiment import tuning
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison


@dataclass(frozen=True)
class Table:
    """A table with a title; its first row heads.

    Attributes:
        title: above it.
        rows: of cells.
        best_first: whether the row after the head has the best of all.
    """

    title: str
    rows: list[list[str]]
    best_first: bool = False


@dataclass(frozen=True)
class Report:
    """What is said of a comparison, in this order, wherever it is shown.

    Attributes:
        title: workload, budget and seeds.
        headline: at most three sentences, and a line for each reading of rounded weights.
        tables: the results.
        sentences: what the intervals show of each pair of methods, and how RST stood to time.
        details: further tables.
        conditions: under which all of it holds.
    """

    title: str
    headline: Sequence[str]
    tables: Sequence[Table]
    sentences: Sequence[str]
    details: Sequence[Table]
    conditions: str


def report_of(comparison: Comparison) -> Report:
    """Return the report of a comparison."""
    plan = comparison.plan
    seeds = "1 seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    title = f"{plan.workload.name}: {plan.budget.seconds:g} s of RST each, {seeds}{plan.but_free}"
    held_under = [conditions(comparison), *read_as.conditions(comparison)]
    held_under += measured.not_measured(comparison)
    if configs_of(plan):
        return Report(
            title,
            [ablation.verdict(comparison, reading) for reading in plan.read],
            [
                Table(ablation.title(comparison, *at), ablation.table(comparison, *at))
                for reading in plan.read
                for at in ((share, reading) for share in ablation.SHARES)
            ],
            measured.sentences(comparison),
            _measured(comparison),
            " ".join(["Constant rate.", *held_under]),
        )
    table = results(comparison)
    has_best = table[1][0] == "1"
    details = [Table(title, rows) for title, rows in read_as.gains(comparison).items()]
    if errors := read_as.rounding_errors(comparison):
        details.append(Table(read_as.ERRORS, errors))
    if len((saved := savings(comparison))[0]) > 1:
        details.append(Table(f"RST saved on the way to the target{plan.but_free}", saved))
    by_policy = totals(comparison)
    also = " and RSE" if RSE in by_policy[0] else ""
    name = f"RST by policy{also}, means over seeds"
    if plan.read_test:
        pairs = zip(validation(comparison), by_policy, strict=True)
        by_policy = [[*one, *other[1:]] for one, other in pairs]
        name = f"The validation part, and {name}"
    details.append(Table(f"{name}{plan.but_free}", by_policy))
    if len(once := paid_once(comparison)) > 1:
        details.append(Table(f"RST by what is charged of what is paid once{plan.but_free}", once))
    if plan.tried:
        details.append(Table(tuning.title(plan), tuning.rows(plan)))
    details += _measured(comparison)
    return Report(
        title,
        headline(comparison),
        [Table(title, table, best_first=has_best)],
        [*verdict(comparison), *measured.sentences(comparison), *tuning.edges(plan)],
        details,
        " ".join(held_under),
    )


def _measured(comparison: Comparison) -> list[Table]:
    """Return what trainings and operations took here, beside RST."""
    free = comparison.plan.but_free
    seeds = ", medians over seeds" if len(comparison.plan.seeds) > 1 else ""
    tables = {
        f"Measured here{seeds}": measured.trainings(comparison),
        "Operations here and by the profile": measured.operations(comparison),
    }
    return [Table(f"{title}{free}", rows) for title, rows in tables.items() if rows]


def markdown(comparison: Comparison) -> str:
    """Return the report for a note of MLflow, or a file."""
    report = report_of(comparison)
    lines = [" ".join(report.headline), ""]
    for table in report.tables:
        lines += [f"## {table.title}", "", *_markdown_table(table), ""]
    lines += [f"- {sentence}" for sentence in report.sentences]
    for table in report.details:
        lines += ["", f"### {table.title}", "", *_markdown_table(table)]
    return "\n".join([*lines, "", f"_{report.conditions}_"])


def _markdown_table(table: Table) -> list[str]:
    head, *body = table.rows
    if table.best_first:
        body[0] = [f"**{cell}**" for cell in body[0]]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
