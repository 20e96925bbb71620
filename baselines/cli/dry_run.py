"""What a comparison will take, from a few real steps, before anything long starts."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

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
from baselines.experiment.comparison import Plan, methods_by_training
from baselines.methods.method import find
from baselines.training.loop import training_step
from baselines.workloads.base import WorkloadError
from baselines.workloads.check import errors
from timing import Profile, limits
from timing.calibration.measure import MIN_PASSES, WARM_UP_STEPS
from timing.calibration.warnings import LEAST_PROCESSES
from timing.tracebacks import is_lack_of_memory, message_of

LEAST_TIMED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a plan will take.

    Attributes:
        memory: on the model's device.
        step_seconds: median of a training step here, its batch included.
        evaluation_seconds: of one evaluation here.
        steps_per_run: that the budget pays for, at most, since averages are charged too.
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
    """
    workload = plan.workload
    groups = methods_by_training(plan)
    available = available_bytes()
    try:
        with with_no_more_than(available):
            found = errors(workload)
            gc.collect()
            available = available_bytes()
            torch.manual_seed(0)
            model = workload.make_model().train()
            optimizer = workload.make_optimizer(model, plan.settings.learning_rate)
            saved: dict[int, int] = {}
            with counting_saved(saved, model):
                training_step(workload, model, optimizer, next(workload.batches(0)))
            step_seconds = _step_seconds(plan, model, optimizer, timed_seconds)
            evaluation_seconds = _seconds(lambda: workload.evaluate(model))
            memory = Memory(
                parameters=bytes_of([*model.parameters(), *model.buffers()]),
                gradients=bytes_of(gradients_of(model)),
                optimizer=bytes_of(tensors_in(optimizer.state)),
                activations=sum(saved.values()),
                windows=0,
                jobs=jobs,
                available=available,
            )
            del optimizer
            windows = max(window_bytes(group, plan, model) for group in groups)
    except Exception as error:
        if is_lack_of_memory(error):
            raise WorkloadError(
                f"one training step of {workload.name} does not fit into the memory of this "
                f"machine, of which {size_in_words(available)} are free: take a smaller model, "
                f"batch or k ({message_of(error):.120})"
            ) from error
        raise
    memory = replace(memory, windows=windows)
    reference_step = profile.seconds["train_step"] if profile else step_seconds
    steps = math.floor(plan.budget.seconds / reference_step)
    if not steps:
        found.append(
            f"a budget of {plan.budget.seconds:g} s does not pay for one step "
            f"({reference_step:.3g} s): give more"
        )
    if memory.needed > available:
        found.append(
            f"about {size_in_words(memory.needed)} of memory are needed and "
            f"{size_in_words(available)} are free: take a smaller model, batch, k or number of jobs"
        )
    readings = sum(plan.evaluations_of(find(method)) + 1 for method in plan.methods)
    shares = sum(find(group[0]).share for group in groups)
    # Once tuned, no two methods need have the same rate.
    final = [(method,) for method in plan.methods] if plan.trials else groups
    final_shares = sum(find(group[0]).share for group in final)
    training = shares * plan.trials + final_shares * len(plan.seeds)
    rounds = plan.trials + len(plan.seeds)
    training_seconds = training * steps * step_seconds + readings * rounds * evaluation_seconds
    passes = LEAST_PROCESSES * (WARM_UP_STEPS + 2 * MIN_PASSES)
    calibration = 0.0 if profile else passes * (step_seconds + evaluation_seconds / 40)
    return Estimate(
        memory=memory,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        steps_per_run=steps,
        rst_seconds_per_run=plan.budget.seconds,
        runs=len(plan.methods) * rounds,
        trainings=len(groups) * plan.trials + len(final) * len(plan.seeds),
        wall_seconds=calibration + training_seconds / min(jobs, limits.core_count()),
        errors=tuple(found),
    )


def estimate_table(plan: Plan, estimate: Estimate) -> Table:
    """Return the estimate as a table for a terminal."""
    workload, memory = plan.workload, estimate.memory
    shown = Table(title=f"dry run: {workload.name}", show_header=False)
    rows = {
        "data": f"{workload.data.get('source', '')}, sha256 {workload.data['sha256'][:12]}…",
        "parameters and buffers": size_in_words(memory.parameters),
        "gradients": size_in_words(memory.gradients),
        "optimizer state": size_in_words(memory.optimizer),
        "activations saved in a step": size_in_words(memory.activations),
        "averages, while read": size_in_words(memory.windows),
        f"memory needed, {memory.jobs} at a time": f"{size_in_words(memory.needed)}, "
        f"{size_in_words(memory.available)} free",
        "a training step, here": _time(estimate.step_seconds),
        "an evaluation, here": _time(estimate.evaluation_seconds),
        "steps a run": f"at most {estimate.steps_per_run:,}",
        "RST a run": _time(estimate.rst_seconds_per_run),
        "runs": f"{estimate.runs} from {estimate.trainings} trainings",
        "wall time of all, here (estimated)": _time(estimate.wall_seconds),
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _step_seconds(plan: Plan, model: nn.Module, optimizer: Optimizer, seconds: float) -> float:
    """Return the median seconds of a training step; the first ones are left out."""
    batches = plan.workload.batches(0)
    taken: list[float] = []
    while len(taken) < LEAST_TIMED_STEPS + 2 or sum(taken) < seconds:
        taken.append(
            _seconds(lambda: training_step(plan.workload, model, optimizer, next(batches)))
        )
    return statistics.median(taken[2:])


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
