"""The options of the commands, and what they ask for; a wrong one is named with what to do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from baselines.comparison import Plan
from baselines.methods import MethodError, Settings, find
from baselines.workloads import NAMES, WorkloadError
from baselines.workloads import load as load_workload
from timing import POLICIES, Budget, Profile, ProfileError, parse_seconds

if TYPE_CHECKING:
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


def set_threads(threads: int) -> None:
    """Let torch use so many threads."""
    if threads < 1:
        raise typer.BadParameter(f"--threads must be at least 1: {threads}")
    torch.set_num_threads(threads)


def count(option: str, text: str) -> int:
    """A whole number from 1."""
    if not (text.strip().isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"{option} must be a whole number from 1: {text!r}")
    return int(text)


def interval(text: str) -> Every:
    """An interval in steps, or "auto"."""
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"--every must be a number of steps from 1, or auto: {text!r}")
    return int(text)


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
    settings_every = interval(every)
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
            settings=Settings(lr or loaded.learning_rate, k, settings_every),
            policy=policy,
        )
        for seconds in budgets or [loaded.budget_seconds]
    ]


def read_profile(path: Path) -> Profile:
    """The profile given by --reference."""
    try:
        return Profile.read(path)
    except ProfileError as error:
        raise typer.BadParameter(f"--reference: {error}") from error


def cluster_option(text: str) -> tuple[str, str | int]:
    """Name and value, a whole number where it looks like one."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"--cluster-option must be NAME=VALUE: {text!r}")
    return name, int(value) if value.isdecimal() else value
