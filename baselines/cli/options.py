"""The options of the commands, and what they ask for; a wrong one is named with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.backend_bases import FigureCanvasBase

from baselines.experiment.comparison import Plan
from baselines.methods.method import canonical, find
from baselines.methods.settings import MethodError, Settings
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
ThreadsOption = Annotated[
    int,
    typer.Option(
        help="Threads of torch. One is best for small models, and is least disturbed by other "
        "processes."
    ),
]


# Nobody waits for the end of more, and what is made for each would not fit into memory.
MOST_SEEDS = 10_000
MOST_TRIALS = MOST_JOBS = 1000
MOST_SNAPSHOTS = 10_000
MOST_STEPS = 10**9
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


def count(option: str, text: str, most: int = MOST_SNAPSHOTS) -> int:
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


def plans(
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
    """Return a plan for each budget, or a usage error that names the wrong option."""
    try:
        chosen = tuple(canonical(name.strip()) for name in methods.split(","))
        for name in chosen:
            find(name)
    except MethodError as error:
        raise typer.BadParameter(f"--methods: {error}") from error
    if len(set(chosen)) < len(chosen):
        raise typer.BadParameter(f"--methods names a method twice: {methods}")
    within("--seeds", seeds, 1, MOST_SEEDS)
    if lr is not None and not LEAST_RATE <= lr <= MOST_RATE:
        raise typer.BadParameter(
            f"--lr must be a positive number: {lr}"
            + (f", from {LEAST_RATE:g} to {MOST_RATE:g}" if lr > 0 else "")
        )
    settings_every = interval(every)
    within("--k", k, 1, MOST_SNAPSHOTS)
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
            methods=chosen,
            seeds=tuple(range(seeds)),
            budget=Budget(seconds),
            settings=Settings(lr or loaded.learning_rate, k, settings_every),
            policy=policy,
        )
        for seconds in budgets or [loaded.budget_seconds]
    ]


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
