"""What a comparison will take, from a few real steps, before anything long starts."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from rich.table import Table

from baselines.cli.memory import (
    Memory,
    available_bytes,
    bytes_of,
    counting_saved,
    gradients_of,
    size_in_words,
    tensors_in,
    window_bytes,
    with_no_more_than,
)
from baselines.experiment.calibration import effort, operations
from baselines.experiment.plan import Plan, costs_depend_on, methods_by_training
from baselines.methods.method import Method
from baselines.methods.recipes import RecipePart
from baselines.training.readings import read_rounded
from baselines.workloads.base import WorkloadError
from baselines.workloads.check import errors
from timing import Account, Profile, limits
from timing.tracebacks import is_lack_of_memory, message_of

LEAST_TIMED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a plan will take.

    Attributes:
        memory: on the model's device.
        step_seconds: median of a training step here, its batch included; of the longest recipe.
        evaluation_seconds: of one evaluation here.
        rounded_seconds: of rounding its weights in each way asked for, and evaluating them.
        steps_per_run: that the budget pays for, at most, of any recipe: averages are charged too.
        rst_seconds_per_run: reference seconds charged to a run: its budget.
        runs: methods times seeds, and trials before.
        trainings: fewer than runs where methods follow one training together.
        wall_seconds: of the whole comparison here, calibration included; more jobs than cores take
            as long as so many.
        errors: what is wrong with the plan, a line each; empty if it can start.
    """

    memory: Memory
    step_seconds: float
    evaluation_seconds: float
    rounded_seconds: float
    steps_per_run: int
    rst_seconds_per_run: float
    runs: int
    trainings: int
    wall_seconds: float
    errors: tuple[str, ...]


def estimate(
    plan: Plan, profile: Profile | None = None, jobs: int = 1, timed_seconds: float = 2.0
) -> Estimate:
    """Try out the workload of a plan for a few steps, and count what the plan will take.

    Args:
        plan: methods, seeds and budget.
        profile: gives the reference cost of a step; without one, this machine is the reference.
        jobs: trainings at the same time on this machine.
        timed_seconds: how long steps are timed.

    Raises:
        WorkloadError: one step does not fit into memory.
        MethodError: a method cannot be made, or does not say how an operation is measured.
    """
    # Before anything else takes time: it counts how long a process takes to start.
    calibration = 0.0 if profile else effort(plan, jobs).seconds
    workload = plan.workload
    groups = [[plan.method(name) for name in group] for group in methods_by_training(plan)]
    available = available_bytes()
    try:
        with with_no_more_than(available):
            found = errors(workload)
            gc.collect()
            available = available_bytes()
            tried: dict[RecipePart, _Tried] = {}
            for recipe in dict.fromkeys(method.recipe for method in plan.methods):
                alike = [group for group in groups if group[0].recipe == recipe]
                tried[recipe] = _try(plan, alike, jobs, timed_seconds)
            if profile is None:
                # Whether each operation of a file's part can be measured.
                operations(workload, plan.methods, costs_depend_on(plan.methods))
    except Exception as error:
        if is_lack_of_memory(error):
            raise WorkloadError(
                f"one training step of {workload.name} does not fit into the memory of this "
                f"machine, of which {size_in_words(available)} are free: take a smaller model, "
                f"batch or k ({message_of(error):.120})"
            ) from error
        raise
    memory = max((each.memory for each in tried.values()), key=lambda memory: memory.needed)
    memory = replace(memory, available=available)
    evaluation_seconds = next(iter(tried.values())).evaluation_seconds
    rounded_seconds = next(iter(tried.values())).rounded_seconds
    steps: dict[RecipePart, int] = {}
    for recipe, here in tried.items():
        kinds = recipe.step_kinds(workload)
        own = next(method for method in plan.methods if method.recipe == recipe)
        shares = own.charged_shares(plan.free)
        account = Account(profile.seconds, plan.policy, shares) if profile else None
        reference_step = max(map(account.cost, kinds)) if account else here.step_seconds
        steps[recipe] = math.floor(plan.budget.seconds / reference_step)
        if not steps[recipe]:
            found.append(
                f"a budget of {plan.budget.seconds:g} s does not pay for one step "
                f"({reference_step:.3g} s): give more"
            )
    if memory.needed > available:
        found.append(
            f"about {size_in_words(memory.needed)} of memory are needed and "
            f"{size_in_words(available)} are free: take a smaller model, batch, k or number of jobs"
        )

    def training_seconds_of(group: Sequence[Method]) -> float:
        recipe = group[0].recipe
        return group[0].share * steps[recipe] * tried[recipe].step_seconds

    readings = sum(plan.evaluations_of(method) + 1 for method in plan.methods)
    # Once tuned, no two methods need have the same rate.
    final = [[method] for method in plan.methods] if plan.trials else groups
    training_seconds = plan.trials * math.fsum(map(training_seconds_of, groups))
    training_seconds += len(plan.seeds) * math.fsum(map(training_seconds_of, final))
    rounds = plan.trials + len(plan.seeds)
    training_seconds += readings * (rounds * evaluation_seconds + len(plan.seeds) * rounded_seconds)
    return Estimate(
        memory=memory,
        step_seconds=max(each.step_seconds for each in tried.values()),
        evaluation_seconds=evaluation_seconds,
        rounded_seconds=rounded_seconds,
        steps_per_run=max(steps.values()),
        rst_seconds_per_run=plan.budget.seconds,
        runs=len(plan.methods) * rounds,
        trainings=len(groups) * plan.trials + len(final) * len(plan.seeds),
        wall_seconds=calibration + training_seconds / min(jobs, limits.core_count()),
        errors=tuple(found),
    )


def estimate_table(plan: Plan, estimate: Estimate) -> Table:
    """Return the estimate as a table for a terminal."""
    workload, memory = plan.workload, estimate.memory
    # Where steps differ they are counted by the costliest.
    differ = any(len(method.recipe.step_kinds(workload)) > 1 for method in plan.methods)
    how = "about" if differ else "at most"
    shown = Table(title=f"dry run: {workload.name}", show_header=False)
    copies, reading = {}, {}
    if plan.roundings:
        names = ", ".join(plan.read[1:])
        copies["a rounded copy, while read"] = size_in_words(memory.rounded)
        reading[f"and read as {names}"] = _time(estimate.rounded_seconds)
    rows = {
        "data": f"{workload.data.get('source', '')}, sha256 {workload.data['sha256'][:12]}…",
        "parameters and buffers": size_in_words(memory.parameters),
        "gradients": size_in_words(memory.gradients),
        "optimizer state": size_in_words(memory.optimizer),
        "activations saved in a step": size_in_words(memory.activations),
        "averages, while read": size_in_words(memory.windows),
        **copies,
        f"memory needed, {memory.jobs} at a time": f"{size_in_words(memory.needed)}, "
        f"{size_in_words(memory.available)} free",
        "a training step, here": _time(estimate.step_seconds),
        "an evaluation, here": _time(estimate.evaluation_seconds),
        **reading,
        "steps a run": f"{how} {estimate.steps_per_run:,}",
        "RST a run": _time(estimate.rst_seconds_per_run),
        "runs": f"{estimate.runs} from {estimate.trainings} trainings",
        "wall time of all, here (estimated)": _time(estimate.wall_seconds),
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


class _Tried(NamedTuple):
    """What a recipe takes here."""

    memory: Memory
    step_seconds: float
    evaluation_seconds: float
    rounded_seconds: float


def _try(plan: Plan, groups: Sequence[Sequence[Method]], jobs: int, timed_seconds: float) -> _Tried:
    """Train a few steps of one recipe, whose methods are in groups that share a training."""
    workload = plan.workload
    torch.manual_seed(0)
    model = workload.make_model().train()
    method = groups[0][0]
    recipe = method.begin_recipe(model, workload, plan.rate_of(method))
    batches = workload.batches(0)
    # At its end a model may have grown.
    moments = (0.0, 1.0) if method.recipe.depends_on_spent else (0.0,)
    activations, gradients, step_seconds = 0, 0, 0.0
    for spent in moments:
        if spent:
            recipe.step(batches, spent)
        saved: dict[int, int] = {}
        with counting_saved(saved, model):
            recipe.step(batches, spent)
        taken: list[float] = []
        # The first ones are left out.
        while len(taken) < LEAST_TIMED_STEPS + 2 or sum(taken) < timed_seconds / len(moments):
            taken.append(_seconds(partial(recipe.step, batches, spent)))
        activations = max(activations, sum(saved.values()))
        gradients = max(gradients, bytes_of(gradients_of(model)))
        step_seconds = max(step_seconds, statistics.median(taken[2:]))
    evaluation_seconds = _seconds(lambda: workload.evaluate(model))
    read = partial(read_rounded, model, plan.roundings, workload.evaluate, torch.device("cpu"))
    memory = Memory(
        parameters=bytes_of([*model.parameters(), *model.buffers()]),
        gradients=gradients,
        optimizer=bytes_of(tensors_in(recipe.optimizer.state)),
        activations=activations,
        windows=0,
        rounded=bytes_of([*model.parameters(), *model.buffers()]) if plan.roundings else 0,
        jobs=jobs,
        available=0,
    )
    del recipe
    windows = max(window_bytes(group, plan, model) for group in groups)
    memory = replace(memory, windows=windows)
    rounded_seconds = _seconds(read) if plan.roundings else 0.0
    return _Tried(memory, step_seconds, evaluation_seconds, rounded_seconds)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _time(seconds: float) -> str:
    """Return seconds as text for people."""
    for least, unit, name in ((7200, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= least:
            return f"{seconds / unit:.3g} {name}"
    return f"{1000 * seconds:.3g} ms"
