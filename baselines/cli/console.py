"""What the commands print: progress, results and tables."""

from __future__ import annotations

import math

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from baselines.analysis import tables
from baselines.analysis.report import report_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.training.events import Ended, Evaluated, Event, Failed, Started
from baselines.training.results import Point
from timing.cli import commandline

console = commandline.console()


def say(text: str) -> None:
    """Print a line as it is: not wrapped, so that it can be copied."""
    console.print(text, soft_wrap=True)


def progress_bar() -> Progress:
    """Make a bar with what is done beside it, and the time so far."""
    return commandline.progress_bar(console)


class Screen:
    """Progress on the terminal: called with the events of a comparison."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._budget = plan.budget.seconds
        self._task = progress.add_task("", total=len(plan.methods) * len(plan.seeds))
        self._done: dict[tuple[str, int], float] = {}
        self._latest: dict[tuple[str, int], Point] = {}

    def __call__(self, event: Event) -> None:
        """Move the bar, and print what came of each run."""
        match event:
            case Evaluated():
                self._latest[event.method, event.seed] = event.point
                self._show(event.method, event.seed, event.point.rst_seconds / self._budget)
            case Ended():
                for run in event.runs:
                    self._say_of(run.method, event.seed, run.failure)
                self._say(
                    f"  trained in {event.measured_seconds:.1f} s measured here, for "
                    f"{event.rst_seconds:.1f} s RST of the same work"
                )
            case Failed():
                for method in event.methods:
                    self._say_of(method, event.seed, event.reason)

    def _say_of(self, method: str, seed: int, failure: str | None) -> None:
        self._show(method, seed, 1.0)
        point = self._latest.get((method, seed))
        steps, rst_seconds = (point.step, point.rst_seconds) if point else (0, 0.0)
        after = f"after {steps} steps, {rst_seconds:.3f} s RST"
        value = point.value if point else math.inf
        end = f"FAILED {after}: {failure}" if failure else f"{value:.4f} {after}"
        self._say(f"{method}, seed {seed}: {end}")

    def _show(self, method: str, seed: int, fraction: float) -> None:
        self._done[method, seed] = fraction
        done = math.fsum(self._done.values())
        self._progress.update(self._task, description=f"{method}, seed {seed}", completed=done)

    def _say(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True)


class TuningBar:
    """Progress of the trials on the terminal: called with their events."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("tuning", total=len(plan.methods) * plan.trials)

    def __call__(self, event: Event) -> None:
        """Move the bar."""
        match event:
            case Started():
                first, *_ = event.shares
                self._progress.update(self._task, description=f"tuning: {first}")
            case Ended():
                self._progress.advance(self._task, len(event.runs))
            case Failed():
                self._progress.advance(self._task, len(event.methods))


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
    metric = comparisons[0].plan.workload.metric
    part = "Test" if comparisons[0].plan.read_test else "Validation"
    title = f"{part} {metric} at the end (rank) by budget"
    console.print(table_of(tables.ranking(comparisons), title))


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
