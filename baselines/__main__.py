"""The command line: `python -m baselines compare` and `python -m baselines ablate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baselines import dry_run as dry_runs
from baselines import report
from baselines.ablation import Cell, ablate
from baselines.ablation import check as check_ablation
from baselines.ablation import table as ablation_table
from baselines.comparison import Comparison, Plan, check, compare
from baselines.methods import DEFAULT, METHODS, Settings
from baselines.reference import measure_profile
from baselines.tracker import Tracker
from baselines.workloads import NAMES, WorkloadError
from baselines.workloads import load as load_workload
from timing import (
    POLICIES,
    Budget,
    CalibrationError,
    Profile,
    ProfileError,
    commandline,
    parse_seconds,
)

if TYPE_CHECKING:
    from baselines.training import Point, Trajectory
    from lawa_opt.interval import Every

WorkloadOption = Annotated[
    str,
    typer.Option(
        help="A Python file that defines load() -> Workload, or one of these. "
        + " ".join(f"{name}: {what}." for name, what in NAMES.items())
    ),
]
DataOption = Annotated[
    Path | None, typer.Option(help="The file or folder that the workload reads.")
]
SeedsOption = Annotated[int, typer.Option(help="How many seeds.")]
RateOption = Annotated[
    float | None, typer.Option(help="Peak learning rate.", show_default="the workload's")
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        help="Reference profile that gives each operation's cost.",
        show_default="calibrated now, on this machine",
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        help="Threads of torch. One is best for small models, and is least disturbed by other "
        "processes."
    ),
]

app = typer.Typer(add_completion=False)
console = Console()


@app.callback()
def _commands() -> None:
    """Compare LAWA with its baselines under one fixed budget."""


@app.command("compare")
def compare_command(
    workload: WorkloadOption = "pydocs",
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Reference time each run may spend, such as 20s, 1.5m or 6h; several, as in "
            "30s,60s,120s, show how the ranking moves with the budget.",
            show_default="30s, digits 5s",
        ),
    ] = None,
    seeds: SeedsOption = 3,
    methods: Annotated[
        str, typer.Option(help=f"Which methods, with commas between them: {', '.join(METHODS)}.")
    ] = ",".join(DEFAULT),
    k: Annotated[int, typer.Option(help="Snapshots in LAWA's window.")] = 5,
    every: Annotated[
        str,
        typer.Option(
            help="Steps between two snapshots, or auto: spread over the latest tenth of training."
        ),
    ] = "auto",
    lr: RateOption = None,
    reference: ReferenceOption = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Which operations the budget is charged for: algoperf (all that changes weights, "
            "averages or statistics), ntng (the training loop alone) or mlperf (everything)."
        ),
    ] = "algoperf",
    threads: ThreadsOption = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check workload, data and memory, estimate steps and time, and train nothing.",
        ),
    ] = False,
) -> None:
    """Train every method with every seed under one budget of reference system time.

    Prints the table and what it bears; everything is recorded in MLflow.
    """
    _set_threads(threads)
    plans = _plans(workload, data, budget, seeds, methods, k, every, lr, policy)
    if dry_run:
        for plan in plans:
            _dry_run(plan, _read_profile(reference) if reference else None)
        return
    profile = _read_profile(reference) if reference else _calibrated(plans[0])
    try:
        for plan in plans:
            check(plan, profile)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    comparisons = []
    for plan in plans:
        with Tracker(plan, profile) as tracker:
            comparisons.append(_run(plan, profile, tracker))
            tracker.finish(comparisons[-1])
        _print(comparisons[-1])
        for line in tracker.how_to_review():
            _say(line)
    if len(comparisons) > 1:
        _print_ranking(comparisons)


@app.command("ablate")
def ablate_command(
    workload: WorkloadOption = "pydocs",
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Reference time each window may spend.", show_default="30s, digits 5s"),
    ] = None,
    seeds: SeedsOption = 3,
    k: Annotated[
        str, typer.Option(help="Lengths of the window, with commas between.")
    ] = "1,2,3,5,8",
    every: Annotated[
        str, typer.Option(help="Intervals in steps, or auto, with commas between.")
    ] = "auto,5,20,80",
    lr: RateOption = None,
    reference: ReferenceOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Try every k with every interval, all on one training of the constant rate a seed.

    Prints the metric of each at half of the budget and at its end, beside the live weights.
    """
    _set_threads(threads)
    ks = [_count("--k", text) for text in k.split(",")]
    intervals = [_interval(text.strip()) for text in every.split(",")]
    cells = [Cell(length, interval) for interval in intervals for length in ks]
    if len(set(cells)) < len(cells):
        raise typer.BadParameter(f"--k or --every names a value twice: {k}; {every}")
    plans = _plans(workload, data, budget, seeds, "constant", max(ks), "auto", lr, "algoperf")
    if len(plans) > 1:
        raise typer.BadParameter(f"--budget: an ablation takes one: {budget}")
    (plan,) = plans
    profile = _read_profile(reference) if reference else _calibrated(plan)
    try:
        check_ablation(plan, profile, cells)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    ended: dict[tuple[str, int], float] = {}
    with _progress() as progress:
        task = progress.add_task("", total=float(len(plan.seeds) * (len(cells) + 1)))

        def show(name: str, seed: int, point: Point) -> None:
            ended[name, seed] = point.rst_seconds / plan.budget.seconds
            done = math.fsum(ended.values())
            progress.update(task, description=f"{name}, seed {seed}", completed=done)

        comparison = ablate(plan, profile, cells, show)
    for share in (0.5, 1.0):
        seconds = plan.budget.seconds * share
        title = f"{plan.workload.name}: {plan.workload.metric} after {seconds:g} s of RST"
        console.print(_table_of(ablation_table(comparison, cells, share), title))
    _say(f"Constant rate. {report.conditions(comparison)}")


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise typer.BadParameter(f"--threads must be at least 1: {threads}")
    torch.set_num_threads(threads)


def _count(option: str, text: str) -> int:
    if not (text.strip().isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"{option} must be a whole number from 1: {text!r}")
    return int(text)


def _interval(text: str) -> Every:
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"--every must be a number of steps from 1, or auto: {text!r}")
    return int(text)


def _dry_run(plan: Plan, profile: Profile | None) -> None:
    """Print what the plan will take; a plan that cannot start ends with status 1."""
    try:
        if profile:
            check(plan, profile)
        found = dry_runs.estimate(plan, profile)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(dry_runs.table(plan, found))
    for problem in found.problems:
        _say(f"PROBLEM: {problem}")
    if found.problems:
        raise typer.Exit(1)
    _say("Nothing speaks against it: without --dry-run it starts.")


def _say(text: str) -> None:
    """A line as it is: not wrapped, so that it can be copied, and without markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _plans(
    workload: str,
    data: Path | None,
    budget: str | None,
    seeds: int,
    methods: str,
    k: int,
    every: str,
    lr: float | None,
    policy: str,
) -> list[Plan]:
    """The options as a plan for each budget, or a usage error that names the wrong one."""
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
    interval = _interval(every)
    if k < 1:
        raise typer.BadParameter(f"--k must be at least 1: {k}")
    if policy not in POLICIES:
        raise typer.BadParameter(f"--policy: {policy!r} is none of {', '.join(POLICIES)}")
    try:
        budgets = [parse_seconds(text) for text in budget.split(",")] if budget else []
    except ValueError as error:
        raise typer.BadParameter(f"--budget: {error}") from error
    try:
        loaded = load_workload(workload, data)
    except WorkloadError as error:
        raise typer.BadParameter(f"--workload: {error}") from error
    return [
        Plan(
            workload=loaded,
            methods=chosen,
            seeds=tuple(range(seeds)),
            budget=Budget(seconds),
            settings=Settings(lr or loaded.learning_rate, k, interval),
            policy=policy,
        )
        for seconds in budgets or [loaded.budget_seconds]
    ]


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

        def show(done: float, said: str) -> None:
            progress.update(task, completed=done, description=f"calibrating: {said}")

        try:
            profile = measure_profile(plan, show)
        except CalibrationError as error:
            _say(error.stderr)
            raise commandline.CommandError(str(error)) from error
    path = Path(f"reference-{plan.workload.name}.json")
    profile.write(path)
    _say(f"Reference profile: {path} (give it again with --reference {path} to repeat this run).")
    _say(f"  measured on {profile.machine}")
    if profile.machine.gpus.absence:
        _say(f"  {profile.machine.gpus.absence}")
    _say(
        f"  its costs give a mixed loop of training {1 + profile.closure:.1%} of its measured time"
    )
    for flag in profile.flags():
        _say(f"  WARNING: {flag}")
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
            f"{trajectory.rst_seconds:.1f} s RST of the same work"
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
    console.print(_table_of(report.totals(comparison), "RST by policy, means over seeds"))
    for sentence in report.verdict(comparison):
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(report.conditions(comparison), style="dim", markup=False, highlight=False)


def _print_ranking(comparisons: list[Comparison]) -> None:
    metric = comparisons[0].plan.workload.metric
    console.print(_table_of(report.ranking(comparisons), f"Final {metric} (rank) by budget"))


def _table_of(rows: list[list[str]], title: str) -> Table:
    """A table whose first row is its head."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    commandline.run(app)
