"""The options of the commands, and what they ask for; a wrong one is named with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.backend_bases import FigureCanvasBase

from baselines.experiment.plan import Plan, check_free, tasks
from baselines.experiment.processes import free_core_count
from baselines.methods.averagers.lawa import MOST_STEPS
from baselines.methods.method import Method
from baselines.methods.names import find, split_names
from baselines.methods.part import MethodError
from baselines.training import distributed, training
from baselines.workloads import NAMES, WorkloadError
from baselines.workloads import load as load_workload
from lawa_opt.schedule import Every
from timing import POLICIES, Budget, Profile, ProfileError, parse_seconds
from timing.calibration.processes import MOST_THREADS

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
PolicyOption = Annotated[
    str,
    typer.Option(
        help="Which operations the budget is charged for: algoperf (all that changes weights, "
        "averages or statistics), ntng (the training loop alone) or mlperf (everything)."
    ),
]
FreeOption = Annotated[
    str | None,
    typer.Option(
        metavar="OPERATION[,...]",
        help="Operations that no budget is charged for, such as score,hessian: would the idea pay "
        "if they cost nothing? Said in every table, and a comparison of its own.",
        show_default="none",
    ),
]
FolderOption = Annotated[
    Path,
    typer.Option(
        help="Where comparisons are kept. The same command resumes its own if it was cut off, "
        "and repeats nothing that has ended."
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        help="Trainings at a time, each in a process of its own.",
        show_default="the cores that are free; 1 on a GPU or a cluster, and under torchrun",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        help="Where the trainings run: slurm, or local to try that out; through submitit. Its "
        "pickles lie in the comparison's folder `cluster`, for you alone (mode 0700), since "
        "who can write there can run code as you.",
        show_default="this machine",
    ),
]
ClusterOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-option",
        help="Of submitit, such as slurm_partition=gpu or timeout_min=600; may be "
        "given more than once.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check workload, data and memory, estimate steps and time, and train nothing.",
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        help="Threads of torch. One is best for small models, and is least disturbed by other "
        "processes."
    ),
]

PublishOption = Annotated[
    bool,
    typer.Option(
        help="Whether it is sent to MLflow while it runs; `publish` does so later, too.",
    ),
]

# Nobody waits for the end of more, and what is made for each would not fit into memory.
MOST_SEEDS = 10_000
MOST_TRIALS = MOST_JOBS = 1000
# Ten times as much, which tuning may try, is a number in float32 too.
LEAST_RATE, MOST_RATE = 1e-36, 1e36


def within(option: str, value: int, least: int, most: int) -> int:
    """Return the value if it is within its limits; a usage error if not."""
    if value < least:
        raise typer.BadParameter(f"{option} must be at least {least}: {value!s:.60}")
    if value > most:
        raise typer.BadParameter(f"{option} must be at most {most}: {value!s:.60}")
    return value


def set_threads(threads: int) -> None:
    """Let torch use so many threads."""
    torch.set_num_threads(within("--threads", threads, 1, MOST_THREADS))


def count(option: str, text: str, most: int) -> int:
    """Return a whole number from 1, or a usage error that names the option."""
    # Python converts no more than some thousand digits.
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > 100 or int(digits) < 1:
        raise typer.BadParameter(f"{option} must be a whole number from 1: {text!r:.60}")
    return within(option, int(digits), 1, most)


def interval(text: str) -> Every:
    """Return an interval in steps, or "auto"."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 100 or int(text) < 1:
        raise typer.BadParameter(f"--every must be a number of steps from 1, or auto: {text!r:.60}")
    return within("--every", int(text), 1, MOST_STEPS)


def methods(names: str, settings: Sequence[str]) -> list[Method]:
    """Return the methods of --methods with the settings of --set, or a usage error.

    Args:
        names: with commas between them.
        settings: such as "lawa.k=10", each of all methods that have it.
    """
    try:
        found = [find(name) for name in split_names(names)]
    except MethodError as error:
        raise typer.BadParameter(f"--methods: {error}") from error
    if len({method.name for method in found}) < len(found):
        raise typer.BadParameter(f"--methods names a method twice: {names}")
    known = dict.fromkeys(name for method in found for name in method.settings)
    given: dict[str, str] = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise typer.BadParameter(f"--set must be NAME=VALUE, such as lawa.k=10: {text!r:.60}")
        if name not in known:
            raise typer.BadParameter(
                f"--set: {name!r:.60} is no setting of the methods compared; they have "
                f"{', '.join(known) or 'none'}"
            )
        if name in given:
            raise typer.BadParameter(f"--set gives {name} twice: {given[name]}; {value}")
        # What a method's name says of itself stands.
        if all(name in method.changed for method in found if name in method.settings):
            raise typer.BadParameter(f"--set: the methods give {name} themselves, in brackets")
        given[name] = value
    try:
        return [
            method.with_settings(
                {n: v for n, v in given.items() if n in method.settings.keys() - method.changed}
            )
            for method in found
        ]
    except MethodError as error:
        raise typer.BadParameter(f"--set: {error}") from error


def try_out(plan: Plan) -> None:
    """Refuse what cannot be trained or be free, and run a step of files' methods: a usage error."""
    try:
        for method in plan.methods:
            method.check(plan.workload, distributed.launched_ranks())
            if method.files:
                training.try_out(method, plan.workload, plan.rate_of(method))
    except MethodError as error:
        raise typer.BadParameter(f"--methods: {error}") from error
    try:
        check_free(plan)
    except ValueError as error:
        raise typer.BadParameter(f"--free: {error}") from error


def plans(
    workload: str,
    data: Path | None,
    budget: str | None,
    seeds: int,
    methods: Sequence[Method],
    lr: float | None,
    policy: str,
    free: str | None = None,
) -> list[Plan]:
    """Return a plan for each budget, or a usage error that names the wrong option."""
    within("--seeds", seeds, 1, MOST_SEEDS)
    if lr is not None and not LEAST_RATE <= lr <= MOST_RATE:
        raise typer.BadParameter(
            f"--lr must be a positive number: {lr}"
            + (f", from {LEAST_RATE:g} to {MOST_RATE:g}" if lr > 0 else "")
        )
    if policy not in POLICIES:
        raise typer.BadParameter(f"--policy: {policy!r} is none of {', '.join(POLICIES)}")
    try:
        budgets = [] if budget is None else [parse_seconds(text) for text in budget.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--budget: {error}") from error
    if len(set(budgets)) < len(budgets):
        raise typer.BadParameter(f"--budget names a length of time twice: {budget}")
    try:
        loaded = load_workload(workload, data)
    except WorkloadError as error:
        raise typer.BadParameter(f"--workload: {error}") from error
    return [
        Plan(
            workload=loaded,
            methods=tuple(methods),
            seeds=tuple(range(seeds)),
            budget=Budget(seconds),
            learning_rate=lr or loaded.learning_rate,
            policy=policy,
            free=() if free is None else tuple(name.strip() for name in free.split(",")),
        )
        for seconds in budgets or [loaded.budget_seconds]
    ]


def jobs(given: int | None, plans: Sequence[Plan], cluster: str | None, threads: int) -> int:
    """Return how many trainings run at a time: as given, or as many as there are cores free."""
    if given is not None:
        return within("--jobs", given, 1, MOST_JOBS)
    if cluster or distributed.world_size() > 1 or torch.cuda.is_available():
        return 1
    most = max(len(tasks(plan)) for plan in plans)
    return max(1, min(free_core_count() // threads, most))


def read_profile(path: Path) -> Profile:
    """Return the profile given by --reference."""
    try:
        return Profile.read(path)
    except ProfileError as error:
        raise typer.BadParameter(f"--reference: {error}") from error


def check_picture(option: str, path: Path) -> None:
    """Refuse a file that no picture can be written to, before anything is computed for it."""
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise typer.BadParameter(
            f"{option} must be a file whose name ends in one of .{', .'.join(kinds)}: {str(path)!r}"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise typer.BadParameter(f"{option}: {path} cannot be written: it is a folder, or in none")


def cluster_option(text: str) -> tuple[str, str | int]:
    """Return name and value, a whole number where it looks like one."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"--cluster-option must be NAME=VALUE: {text!r:.60}")
    return name, int(value) if value.isdecimal() and len(value) <= 100 else value
