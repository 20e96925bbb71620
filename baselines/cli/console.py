"""What the commands print: progress, results and tables."""

from __future__ import annotations

import math

from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from baselines.analysis import report, tables
from baselines.analysis.verdict import verdict
from baselines.experiment.comparison import Comparison, Plan, Silent
from baselines.tracking.tracker import Tracker
from baselines.training.results import Point, TrainingResult
from timing.cli import commandline

console = commandline.console()


def say(text: str) -> None:
    """Print a line as it is: not wrapped, so that it can be copied."""
    console.print(text, soft_wrap=True)


def progress_bar() -> Progress:
    """Make a bar with what is done beside it, and the time so far."""
    return commandline.progress_bar(console)


class Screen:
    """Progress on the terminal, handed on to the tracker."""

    def __init__(self, plan: Plan, progress: Progress, tracker: Tracker) -> None:
        self.tracker = tracker
        self._progress = progress
        self._budget = plan.budget.seconds
        self._task = progress.add_task("", total=len(plan.methods) * len(plan.seeds))
        self._done: dict[tuple[str, int], float] = {}

    def run_started(self, method: str, seed: int) -> None:
        """Hand on that a run begins."""
        self.tracker.run_started(method, seed)

    def point(self, method: str, seed: int, point: Point) -> None:
        """Move the bar."""
        self._show(method, seed, point.rst_seconds / self._budget)
        self.tracker.point(method, seed, point)

    def _show(self, method: str, seed: int, fraction: float) -> None:
        self._done[method, seed] = fraction
        done = math.fsum(self._done.values())
        self._progress.update(self._task, description=f"{method}, seed {seed}", completed=done)

    def ended(self, method: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
        """Hand on that a run has ended well."""
        self.tracker.ended(method, seed, model, inputs)

    def training_ended(self, result: TrainingResult) -> None:
        """Print what came of each run."""
        for run in result.runs:
            self._show(run.method, run.seed, 1.0)
            after = f"after {run.steps} steps, {run.rst_seconds:.3f} s RST"
            end = f"FAILED {after}: {run.failure}" if run.failure else f"{run.final:.4f} {after}"
            self.say(f"{run.method}, seed {run.seed}: {end}")
        # Of a training that was cut off it is not known.
        if result.error is None:
            self.say(
                f"  trained in {result.measured_seconds:.1f} s measured here, for "
                f"{result.rst_seconds:.1f} s RST of the same work"
            )
        self.tracker.training_ended(result)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, soft_wrap=True)


class TuningBar(Silent):
    """Progress of the trials on the terminal."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("tuning", total=len(plan.methods) * plan.trials)

    def run_started(self, method: str, seed: int) -> None:  # noqa: ARG002
        """Say which method is tried."""
        self._progress.update(self._task, description=f"tuning: {method}")

    def training_ended(self, result: TrainingResult) -> None:
        """Move the bar."""
        self._progress.advance(self._task, len(result.runs))


def show(comparison: Comparison) -> None:
    """Print tables, verdict and conditions."""
    plan = comparison.plan
    title = f"{plan.workload.name}, {plan.budget.seconds:g} s of RST each"
    console.print(table_of(tables.results(comparison), title))
    saved = tables.savings(comparison)
    if len(saved[0]) > 1:
        console.print(table_of(saved, "RST saved on the way to the target"))
    console.print(table_of(tables.totals(comparison), "RST by policy, means over seeds"))
    for sentence in verdict(comparison):
        console.print(f"- {sentence}")
    console.print(report.conditions(comparison), style="dim")


def show_ranking(comparisons: list[Comparison]) -> None:
    """Print how the ranking moves with the budget."""
    metric = comparisons[0].plan.workload.metric
    part = "Test" if comparisons[0].plan.read_test else "Validation"
    title = f"{part} {metric} at the end (rank) by budget"
    console.print(table_of(tables.ranking(comparisons), title))


def table_of(rows: list[list[str]], title: str) -> Table:
    """Return a table whose first row is its head."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table
