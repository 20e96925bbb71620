"""What the commands print: results and tables."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from baselines.analysis import tables
from baselines.analysis.report import report_of
from baselines.experiment.comparison import Comparison
from baselines.training.readings import in_title
from timing.cli import commandline

console = commandline.console()


def say(text: str) -> None:
    """Print a line as it is: not wrapped, so that it can be copied."""
    console.print(text, soft_wrap=True)


def show(comparison: Comparison) -> None:
    """Print what it shows in a few lines, then tables, details and conditions."""
    report = report_of(comparison)
    console.print()
    for sentence in report.headline:
        console.print(sentence, style="bold")
    for table in (*report.tables, *report.details):
        console.print()
        console.print(table_of(table.rows, table.title, best_first=table.best_first))
        if table is report.tables[-1]:
            for sentence in report.sentences:
                console.print(f"- {sentence}")
    console.print()
    console.print(report.conditions, style="dim")


def show_ranking(comparisons: list[Comparison]) -> None:
    """Print how the ranking moves with the budget."""
    plan = comparisons[0].plan
    part = "Test" if plan.read_test else "Validation"
    for reading in plan.read:
        what = f"{part} {plan.workload.metric} at the end (rank) by budget{in_title(reading)}"
        title = f"{what}{plan.but_free}"
        console.print(table_of(tables.ranking(comparisons, reading), title))


def table_of(rows: list[list[str]], title: str, *, best_first: bool = False) -> RenderableType:
    """Return a table whose first row is its head; where it is too wide, a few lines for each row.

    Args:
        rows: of cells, of which no one is ever broken.
        title: above it.
        best_first: whether the row after the head is in bold.
    """
    head, *body = rows
    widths = [
        max(map(cell_len, [*head[place].split(), *(row[place] for row in body)]))
        for place in range(len(head))
    ]
    styles = ["bold" if best_first and row is body[0] else "" for row in body]
    if sum(widths) + 2 * (len(widths) - 1) > console.width:
        return _by_row(head, body, title, styles)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, width in zip(head, widths, strict=True):
        table.add_column(name, width=width)
    for row, style in zip(body, styles, strict=True):
        table.add_row(*row, style=style)
    return table


def _by_row(
    head: list[str], body: list[list[str]], title: str, styles: list[str]
) -> RenderableType:
    """Return a table's rows one after another, each cell on a line of its own."""
    lines = [Text(title, style="italic")]
    # A place alone names nothing.
    first = 2 if head[0] == "rank" else 1
    for row, style in zip(body, styles, strict=True):
        lines.append(Text(" ".join(row[:first]), style=style))
        pairs = zip(head[first:], row[first:], strict=True)
        for name, cell in pairs:
            apart = " " if cell_len(f"    {name}: {cell}") <= console.width else "\n      "
            lines.append(Text(f"    {name}:{apart}{cell}", style=style))
    return Group(*lines)
