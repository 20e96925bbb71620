"""What the operations of a comparison cost on this machine: the reference profile."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from baselines.experiment.comparison import Plan, methods_by_training
from baselines.methods.method import DEFAULT, find
from baselines.methods.settings import MethodError, Settings
from baselines.training.loop import seed_step, training_step
from baselines.training.method_run import max_evaluation_operations, max_step_operations
from baselines.workloads import load
from baselines.workloads.base import Batch, Workload
from timing import (
    Budget,
    CalibrationTarget,
    Operation,
    Profile,
    calibrate_in_processes,
    count_flops,
)
from timing.calibration.profile import FLOPS
from timing.calibration.warnings import LEAST_PROCESSES
from timing.rst.schedules import constant

# Timing takes a twentieth of the time that training will, within these seconds; loading the
# workload in each process, and the loop that checks the costs, come on top.
SHARE = 1 / 20
SECONDS = (1.0, 8.0)


def measure_profile(plan: Plan, on_progress: Callable[[float, str], None]) -> Profile:
    """Measure, on this machine and in fresh processes, every operation the plan can charge.

    The profile has those of the default methods too, and so serves all that run no others. It is
    not refused on a busy machine, where a comparison may still be wanted: the profile's warnings
    say what is wrong with it.

    Raises:
        ValueError: the workload was not made by `baselines.workloads.load`.
        MethodError: a method needs a package that is missing, or does not say how an operation of
            its own is measured.
        CalibrationError: a process failed.
    """
    if plan.workload.source is None:
        raise ValueError(
            f"workload {plan.workload.name} cannot be loaded in another process to be measured: "
            "get it from baselines.workloads.load, or give a profile"
        )
    # In this process first, where an error can be told.
    operations(plan.workload, replace(plan.settings, every="manual"), plan.methods)
    name, data = plan.workload.source
    training_seconds = plan.budget.seconds * len(methods_by_training(plan)) * len(plan.seeds)
    least, most = SECONDS
    seconds = min(max(least, SHARE * training_seconds), most)
    return calibrate_in_processes(
        "baselines.experiment.calibration:calibration_target",
        {
            "workload": name,
            "data": data,
            "k": plan.settings.k,
            "methods": ",".join(plan.methods),
        },
        # The half of it is set aside for starting the processes.
        seconds=2 * seconds,
        threads=torch.get_num_threads(),
        force=True,
        on_progress=on_progress,
        processes=LEAST_PROCESSES,
    )


def calibration_target(
    workload: str, data: str | None = None, k: int = 5, methods: str = ""
) -> CalibrationTarget:
    """Return what `python -m timing calibrate` of this module's name and this function's measures.

    Args:
        workload: a name or a Python file, as of `--workload`.
        data: as of `--data`.
        k: snapshots in LAWA's window.
        methods: as of `--methods`. Those of the table need not be named, but for schedule-free,
            which has a training step of its own.
    """
    loaded = load(workload, None if data is None else Path(data))
    settings = Settings(loaded.learning_rate, k, "manual")
    plan = Plan(loaded, (), (), Budget(loaded.budget_seconds), settings)
    signature = {**plan.signature, **flops_per_step(loaded)}
    asked = [name.strip() for name in methods.split(",") if name.strip()]
    return CalibrationTarget(signature, operations(loaded, settings, asked))


def flops_per_step(workload: Workload) -> dict[str, int]:
    """Return the FLOPs of a training step without the optimizer; empty if they cannot be counted.

    Kernels of a user's own need not run as PyTorch's counter wants them to.
    """

    def make() -> Callable[[], object]:
        torch.manual_seed(0)
        model = workload.make_model().train()
        batch = next(workload.batches(0))
        return lambda: workload.loss(model, batch).backward()

    try:
        return {FLOPS: count_flops(make, device="cpu").total}
    except RuntimeError as error:
        warnings.warn(f"the FLOPs of {workload.name} are not counted: {error}", stacklevel=2)
        return {}


def operations(
    workload: Workload, settings: Settings, methods: Iterable[str] = ()
) -> dict[str, Operation]:
    """Return the operations of the default methods and of these, as the training loop runs them.

    Methods that have the same training step are measured on one model; an operation that several
    have is measured for the first.

    Args:
        workload: model and data.
        settings: k, and "manual" as `every`, so that no collect is part of a training step.
        methods: names, as of `baselines.methods.method.find`.

    Raises:
        MethodError: a method does not say how one of its operations is measured.
    """
    batches = workload.batches(0)
    loaded = [next(batches)]

    def load_data() -> None:
        loaded[0] = next(batches)

    found = {"load_data": Operation(load_data)}
    needed: dict[str, set[str]] = {}
    waiting = {"train_step": [*dict.fromkeys((*DEFAULT, *methods))]}
    while waiting:
        step, names = waiting.popitem()
        torch.manual_seed(0)
        model = workload.make_model().train()
        optimizer = base = workload.make_optimizer(model, settings.learning_rate)
        added: dict[str, Operation] = {}
        for name in names:
            averager = find(name).averager(model, base, workload, settings)
            if averager.train_step != step:
                waiting.setdefault(averager.train_step, []).append(name)
                continue
            needed[name] = {*max_step_operations(averager), *max_evaluation_operations(averager)}
            if optimizer is base:
                optimizer = averager.optimizer
            own = averager.operations()
            unmeasured = {op: how for op, how in own.items() if op not in found | added}
            if unmeasured:
                # It may read what the others have made: a window, which is to be full.
                for op in own.keys() - unmeasured.keys():
                    for _ in range(settings.k):
                        own[op].run()
                added |= unmeasured
        found |= {step: _step(workload, model, optimizer, loaded), **added}
        if step == "train_step":
            found["evaluate"] = Operation(partial(workload.evaluate, model), every=40)
    for name, used in needed.items():
        if missing := used - found.keys():
            raise MethodError(
                f"{name}: the operations() of its averager do not say how "
                f"{', '.join(sorted(missing))} can be measured"
            )
    return found


def _step(
    workload: Workload, model: nn.Module, optimizer: Optimizer, loaded: list[Batch]
) -> Operation:
    """Run a training step on the batch that was loaded."""
    schedule = LambdaLR(optimizer, constant)
    steps = itertools.count()

    def train_step() -> None:
        seed_step(0, next(steps), 0)
        training_step(workload, model, optimizer, loaded[0])
        schedule.step()

    return Operation(train_step)
