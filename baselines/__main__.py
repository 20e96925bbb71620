"""The command line: `python -m baselines compare`."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baselines import report
from baselines.comparison import Comparison, Plan, check, compare, measure_profile
from baselines.methods import METHODS, Settings
from baselines.workloads import text
from timing import Budget, Profile, ProfileError, commandline, parse_seconds
from timing.profile import LARGEST_CLOSURE

if TYPE_CHECKING:
    from baselines.tracking import Tracker
    from baselines.training import Point, Trajectory
    from baselines.workloads.workload import Workload
    from lawa_opt.interval import Every

WORKLOADS = ("pydocs", "digits", "text")

app = typer.Typer(add_completion=False)
console = Console()


@app.callback()
def _commands() -> None:
    """Compare LAWA with its baselines under one fixed budget."""


@app.command("compare")
def compare_command(
    workload: Annotated[
        str,
        typer.Option(
            help="pydocs: a byte-level transformer on CPython's language reference. digits: a "
            "small convolutional net on scikit-learn's images. text: the transformer on --data."
        ),
    ] = "pydocs",
    data: Annotated[Path | None, typer.Option(help="The text file of --workload text.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Reference time each run may spend, such as 20s, 1.5m or 6h.",
            show_default="30s, digits 5s",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Which methods, with commas between them.")
    ] = ",".join(METHODS),
    k: Annotated[int, typer.Option(help="Snapshots in LAWA's window.")] = 5,
    every: Annotated[
        str,
        typer.Option(
            help="Steps between two snapshots, or auto: spread over the latest tenth of training."
        ),
    ] = "auto",
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="the workload's")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Reference profile that gives each operation's cost.",
            show_default="calibrated now, on this machine",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads of torch. One is best for small models, and is least disturbed by other "
            "processes."
        ),
    ] = 1,
) -> None:
    """Train every method with every seed under one budget of reference system time.

    Prints the table and what it bears; everything is recorded in MLflow.
    """
    if threads < 1:
        raise typer.BadParameter(f"--threads must be at least 1: {threads}")
    torch.set_num_threads(threads)
    plan = _plan(workload, data, budget, seeds, methods, k, every, lr)
    profile = _read_profile(reference) if reference else _calibrated(plan)
    try:
        check(plan, profile)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # MLflow takes seconds to import: not before the options are known to be right.
    from baselines.tracking import Tracker, ui_command

    with Tracker(plan, profile) as tracker:
        comparison = _run(plan, profile, tracker)
        tracker.finish(comparison)
    _print(comparison)
    page = f"#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"
    _say(f"To review the runs, start the MLflow UI and open http://127.0.0.1:5000/{page}")
    _say(f"  {sys.executable} -m {ui_command()}")


def _say(text: str) -> None:
    """A line as it is: not wrapped, so that it can be copied, and without markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _plan(
    workload: str,
    data: Path | None,
    budget: str | None,
    seeds: int,
    methods: str,
    k: int,
    every: str,
    lr: float | None,
) -> Plan:
    """The options as a plan, or a usage error that names the wrong one."""
    chosen = tuple(name.strip() for name in methods.split(","))
    for name in chosen:
        if name not in METHODS:
            raise typer.BadParameter(f"--methods: {name!r} is none of {', '.join(METHODS)}")
    if len(set(chosen)) < len(chosen):
        raise typer.BadParameter(f"--methods names a method twice: {methods}")
    if seeds < 1:
        raise typer.BadParameter(f"--seeds must be at least 1: {seeds}")
    if lr is not None and not 0 < lr < math.inf:
        raise typer.BadParameter(f"--lr must be a positive number: {lr}")
    interval: Every
    if every == "auto":
        interval = "auto"
    elif every.isdecimal() and int(every) >= 1:
        interval = int(every)
    else:
        raise typer.BadParameter(f"--every must be a number of steps from 1, or auto: {every!r}")
    if k < 1:
        raise typer.BadParameter(f"--k must be at least 1: {k}")
    try:
        seconds = None if budget is None else parse_seconds(budget)
    except ValueError as error:
        raise typer.BadParameter(f"--budget: {error}") from error
    loaded = _load(workload, data)
    return Plan(
        workload=loaded,
        methods=chosen,
        seeds=tuple(range(seeds)),
        budget=Budget(seconds or loaded.budget_seconds),
        settings=Settings(lr or loaded.learning_rate, k, interval),
    )


def _load(name: str, data: Path | None) -> Workload:
    if name not in WORKLOADS:
        raise typer.BadParameter(f"--workload: {name!r} is none of {', '.join(WORKLOADS)}")
    if (name == "text") != (data is not None):
        raise typer.BadParameter("--data PATH goes with --workload text, and text needs it")
    if data is None:
        module = importlib.import_module(f"baselines.workloads.{name}")
        return module.load()  # type: ignore[no-any-return]
    try:
        return text.load(data)
    except OSError as error:
        raise typer.BadParameter(f"--data: {data}: {error.strerror}") from error
    except ValueError as error:
        raise typer.BadParameter(f"--data: {error}") from error


def _read_profile(path: Path) -> Profile:
    try:
        return Profile.read(path)
    except ProfileError as error:
        raise typer.BadParameter(f"--reference: {error}") from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _calibrated(plan: Plan) -> Profile:
    """A profile measured now, and written where it can be given again."""
    with _progress() as progress:
        task = progress.add_task("calibrating the reference profile", total=1.0)
        profile = measure_profile(plan, lambda done: progress.update(task, completed=done))
    path = Path(f"reference-{plan.workload.name}.json")
    profile.write(path)
    _say(f"Reference profile: {path} (give it again with --reference {path} to repeat this run).")
    _say(f"  measured on {profile.machine}")
    if profile.machine.gpus.absence:
        _say(f"  {profile.machine.gpus.absence}")
    _say(
        f"  its costs give a mixed loop of training {1 + profile.closure:.1%} of its measured time"
    )
    if abs(profile.closure) > LARGEST_CLOSURE:
        _say(
            f"  WARNING: that is more than {LARGEST_CLOSURE:.0%} off (other processes kept "
            f"{profile.other_cores:.1f} cores busy): close them and calibrate again"
        )
    return profile


class _Screen:
    """Progress on the terminal, handed on to the tracker."""

    def __init__(self, plan: Plan, progress: Progress, tracker: Tracker) -> None:
        self.tracker = tracker
        self._progress = progress
        self._budget = plan.budget.seconds
        self._task = progress.add_task("", total=len(plan.methods) * len(plan.seeds))
        self._done: dict[tuple[str, int], float] = {}

    def run_started(self, method: str, seed: int) -> None:
        self.tracker.run_started(method, seed)

    def point(self, method: str, seed: int, point: Point) -> None:
        self._show(method, seed, point.rst_seconds / self._budget)
        self.tracker.point(method, seed, point)

    def _show(self, method: str, seed: int, fraction: float) -> None:
        self._done[method, seed] = fraction
        done = math.fsum(self._done.values())
        self._progress.update(self._task, description=f"{method}, seed {seed}", completed=done)

    def trajectory_ended(self, trajectory: Trajectory) -> None:
        for run in trajectory.runs:
            self._show(run.method, run.seed, 1.0)
            result = f"FAILED: {run.failure}" if run.failure else f"{run.final:.4f}"
            self._say(
                f"{run.method}, seed {run.seed}: {result} after {run.steps} steps, "
                f"{run.rst_seconds:.3f} s RST"
            )
        self._say(
            f"  trained in {trajectory.measured_seconds:.1f} s measured here, for "
            f"{trajectory.rst_seconds:.1f} s RST of all that was charged"
        )
        self.tracker.trajectory_ended(trajectory)

    def _say(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _run(plan: Plan, profile: Profile, tracker: Tracker) -> Comparison:
    with _progress() as progress:
        return compare(plan, profile, _Screen(plan, progress, tracker))


def _print(comparison: Comparison) -> None:
    plan = comparison.plan
    table = report.rows(comparison)
    results = Table(title=f"{plan.workload.name}, {plan.budget.seconds:g} s of RST each")
    for head in ("method", f"final {plan.workload.metric}", "RST to target"):
        results.add_column(head)
    savings = Table(title="RST saved on the way to the target, against ...")
    savings.add_column("method")
    baselines = [name for name in report.BASELINES if name in plan.methods]
    for name in baselines:
        savings.add_column(name)
    for row in table:
        results.add_row(row.title, report.final_cell(row), report.target_cell(row))
        savings.add_row(row.title, *(report.saving_cell(row, name) for name in baselines))
    console.print(results)
    if baselines:
        console.print(savings)
    for sentence in report.verdict(comparison):
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(report.conditions(comparison), style="dim", markup=False, highlight=False)


if __name__ == "__main__":
    commandline.run(app)
