"""The command line: `python -m baselines` with compare, ablate and score."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baselines import ablation, plots, ranks, report, tuning
from baselines import dry_run as dry_runs
from baselines import score as scoring
from baselines.ablation import Cell, ablate, methods_of, plan_of
from baselines.checkpoint import CheckpointError, StorageError
from baselines.comparison import Comparison, Plan, Silent, check
from baselines.folder import (
    FolderError,
    budget_folder,
    describe,
    read_comparison,
    read_profile,
    root_of,
    write_profile,
)
from baselines.heat_map import heat_map
from baselines.jobs import Cluster, Processes, side_by_side
from baselines.lock import Lock, LockedError
from baselines.methods import DEFAULT, METHODS, MethodError, Settings, find
from baselines.reference import measure_profile
from baselines.resume import resume
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
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from baselines.comparison import Listener
    from baselines.jobs import Engine
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
        str,
        typer.Option(
            help=f"Which methods, with commas between them: {', '.join(METHODS)}, or Python files "
            "that define method() -> Method."
        ),
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
    trials: Annotated[
        int,
        typer.Option(
            help="Settings tried for each method before, on the validation part and with a seed of "
            "their own: the peak rate, and what is the method's own. 0: one rate for all."
        ),
    ] = 0,
    threads: ThreadsOption = 1,
    folder: Annotated[
        Path,
        typer.Option(
            help="Where comparisons are kept. The same command goes on with its own if it was cut "
            "off, and repeats nothing that has ended."
        ),
    ] = Path("lawa-runs"),
    jobs: Annotated[
        int, typer.Option(help="Trainings at a time, each in a process of its own.")
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Where the trainings run: slurm, or local to try that out; through submitit.",
            show_default="this machine",
        ),
    ] = None,
    cluster_option: Annotated[
        list[str] | None,
        typer.Option(
            help="Of submitit, such as slurm_partition=gpu or timeout_min=600; may be "
            "given more than once."
        ),
    ] = None,
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
    if trials < 0:
        raise typer.BadParameter(f"--trials must be at least 0: {trials}")
    plans = [
        replace(plan, trials=trials)
        for plan in _plans(workload, data, budget, seeds, methods, k, every, lr, policy)
    ]
    if dry_run:
        for plan in plans:
            _dry_run(plan, _read_profile(reference) if reference else None)
        return
    given = _read_profile(reference) if reference else None
    if jobs < 1:
        raise typer.BadParameter(f"--jobs must be at least 1: {jobs}")
    root = root_of(folder, plans, given.model_dump_json() if given else "")
    options = dict(_cluster_option(text) for text in cluster_option or ())
    try:
        with (
            ranks.joined(),
            Lock(root) if ranks.rank() == 0 else nullcontext(),
            _engine(root, jobs, cluster, options) as engine,
        ):
            # Only one of the processes that train together has something to say.
            console.quiet = ranks.rank() > 0
            comparisons = _carry_out(root, plans, given, engine, jobs)
    except (StorageError, CheckpointError, LockedError, FolderError) as error:
        raise commandline.CommandError(str(error)) from error
    if len(comparisons) > 1:
        _print_ranking(comparisons)
    if not any(run.points for comparison in comparisons for run in comparison.runs):
        raise commandline.CommandError("every run failed")


def _cluster_option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"--cluster-option must be NAME=VALUE: {text!r}")
    return name, int(value) if value.isdecimal() else value


def _engine(
    root: Path, jobs: int, cluster: str | None, options: dict[str, str | int]
) -> AbstractContextManager[Engine | None]:
    """What starts processes; None where this one trains itself."""
    if ranks.world() > 1 and (cluster or jobs > 1):
        raise typer.BadParameter(
            "under torchrun trainings come one after another: no --jobs, no --cluster"
        )
    if cluster is None:
        if options:
            raise typer.BadParameter("--cluster-option is for --cluster")
        return Processes() if jobs > 1 else nullcontext()
    try:
        return Cluster(root / "cluster", cluster, options)
    except ValueError as error:
        raise typer.BadParameter(f"--cluster: {error}") from error


def _carry_out(
    root: Path, plans: list[Plan], given: Profile | None, engine: Engine | None, jobs: int
) -> list[Comparison]:
    """Compare under each budget, going on with what is in the folder, and print the results."""
    kept = read_profile(root)
    if ranks.rank() > 0:
        ranks.wait()
        profile = read_profile(root)
        assert profile is not None
    else:
        profile = kept or given or _calibrated(plans[0])
    try:
        for plan in plans:
            check(plan, profile)
            if plan.trials:
                tuning.check(plan, profile)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if ranks.rank() == 0:
        if kept is None:
            write_profile(root, profile)
        ranks.wait()
    _say(f"Kept in {root}: the same command goes on from there; remove it to start anew.")
    comparisons = []
    for plan in plans:
        path = budget_folder(root, plan)
        if plan.trials:
            plan = _tuned(plan, profile, path, engine, jobs)
        if ranks.rank() > 0:
            comparisons.append(resume(plan, profile, Silent(), path))
            continue
        key = describe(path, plan).id
        with Tracker(plan, profile, key=key, folder=path / "records") as tracker:
            comparisons.append(_run(plan, profile, tracker, path, engine, jobs))
            tracker.finish(comparisons[-1])
        _print(comparisons[-1])
        for line in tracker.how_to_review():
            _say(line)
    return comparisons


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

    Prints the metric of each at half of the budget and at its end, beside the live weights;
    everything is recorded in MLflow.
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
        ablation.check(plan, profile, cells)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    whole = plan_of(plan, cells)
    with Tracker(whole, profile, name="ablation", methods=methods_of(cells)) as tracker:
        with _progress() as progress:
            comparison = ablate(plan, profile, cells, _Screen(whole, progress, tracker))
        pictures = {"k-against-interval": heat_map(comparison, cells)}
        tables = {"results": ablation.columns(comparison, cells)}
        tracker.conclude(ablation.markdown(comparison, cells), pictures, tables)
    for share in ablation.SHARES:
        rows = ablation.table(comparison, cells, share)
        console.print(_table_of(rows, ablation.title(comparison, share)))
    _say(ablation.verdict(comparison, cells))
    _say(f"Constant rate. {report.conditions(comparison)}")
    for line in tracker.how_to_review():
        _say(line)


@app.command("score")
def score_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Of comparisons that have ended, of the same methods on other workloads or under "
            "other budgets.",
        ),
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Image file for the performance profile.")
    ] = None,
) -> None:
    """Score the methods of several comparisons as AlgoPerf does, by their times to the target."""
    try:
        comparisons = [read_comparison(folder) for folder in folders]
        found = scoring.scores(comparisons)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(_table_of(scoring.table(found, comparisons), "AlgoPerf score"))
    _say(scoring.conditions(comparisons))
    if plot:
        try:
            plots.performance_profile(found).savefig(plot, dpi=120)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"--plot: {error}") from error
        _say(f"Performance profile: {plot}")


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
        try:
            find(name)
        except MethodError as error:
            raise typer.BadParameter(f"--methods: {error}") from error
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
        except MethodError as error:
            raise typer.BadParameter(f"--methods: {error}") from error
        except CalibrationError as error:
            _say(error.stderr)
            raise commandline.CommandError(str(error)) from error
    _say("Reference profile:")
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

    def ended(self, method: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
        self.tracker.ended(method, seed, model, inputs)

    def trajectory_ended(self, trajectory: Trajectory) -> None:
        for run in trajectory.runs:
            self._show(run.method, run.seed, 1.0)
            result = f"FAILED: {run.failure}" if run.failure else f"{run.final:.4f}"
            self.say(
                f"{run.method}, seed {run.seed}: {result} after {run.steps} steps, "
                f"{run.rst_seconds:.3f} s RST"
            )
        self.say(
            f"  trained in {trajectory.measured_seconds:.1f} s measured here, for "
            f"{trajectory.rst_seconds:.1f} s RST of the same work"
        )
        self.tracker.trajectory_ended(trajectory)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, soft_wrap=True, markup=False, highlight=False)


class _Tuning(Silent):
    """Progress of the trials on the terminal."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("tuning", total=len(plan.methods) * plan.trials)

    def run_started(self, method: str, seed: int) -> None:  # noqa: ARG002
        self._progress.update(self._task, description=f"tuning: {method}")

    def trajectory_ended(self, trajectory: Trajectory) -> None:
        self._progress.advance(self._task, len(trajectory.runs))


def _tuned(plan: Plan, profile: Profile, path: Path, engine: Engine | None, jobs: int) -> Plan:
    """The plan with the best settings of its trials, which are kept beside its own folder."""
    numbers = itertools.count()

    def carry_out(trial: Plan, profile: Profile, listener: Listener) -> Comparison:
        folder = path.with_name(f"{path.name}-trial-{next(numbers)}")
        return _train(trial, profile, listener, folder, engine, jobs)

    with _progress() as progress:
        found = tuning.tune(plan, profile, _Tuning(plan, progress), carry_out)
    table = path.with_name(f"{path.name}-trials.json")
    if ranks.rank() == 0:
        tuning.write(found, table)
    title = f"Tuning on {plan.workload.metric}, {plan.trials} trials a method"
    console.print(_table_of(tuning.rows(found), title))
    _say(f"All trials: {table}")
    return found


def _run(
    plan: Plan, profile: Profile, tracker: Tracker, path: Path, engine: Engine | None, jobs: int
) -> Comparison:
    with _progress() as progress:
        screen = _Screen(plan, progress, tracker)
        return _train(plan, profile, screen, path, engine, jobs)


def _train(
    plan: Plan, profile: Profile, listener: Listener, path: Path, engine: Engine | None, jobs: int
) -> Comparison:
    if engine:
        return side_by_side(plan, profile, listener, path, engine, jobs)
    return resume(plan, profile, listener, path, warn=_say)


def _print(comparison: Comparison) -> None:
    plan = comparison.plan
    title = f"{plan.workload.name}, {plan.budget.seconds:g} s of RST each"
    console.print(_table_of(report.results(comparison), title))
    saved = report.savings(comparison)
    if len(saved[0]) > 1:
        console.print(_table_of(saved, "RST saved on the way to the target"))
    console.print(_table_of(report.totals(comparison), "RST by policy, means over seeds"))
    for sentence in report.verdict(comparison):
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(report.conditions(comparison), style="dim", markup=False, highlight=False)


def _print_ranking(comparisons: list[Comparison]) -> None:
    metric = comparisons[0].plan.workload.metric
    part = "Test" if comparisons[0].plan.read_test else "Validation"
    title = f"{part} {metric} at the end (rank) by budget"
    console.print(_table_of(report.ranking(comparisons), title))


def _table_of(rows: list[list[str]], title: str) -> Table:
    """A table whose first row is its head."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    commandline.run(app)
