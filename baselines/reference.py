"""What the operations of a comparison cost on this machine: the reference profile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LambdaLR

from baselines.averagers import Ema, Lawa, Swa
from baselines.comparison import Plan, trajectories_of
from baselines.methods import Settings
from baselines.training import training_step
from baselines.workloads import load
from timing import Budget, Calibratable, Operation, Profile, calibrate_in_processes, count_flops
from timing.flags import LEAST_PROCESSES
from timing.profile import FLOPS
from timing.schedules import constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from baselines.workloads.workload import Workload

# Timing takes a twentieth of the time that training will, within these seconds; loading the
# workload in each process, and the loop that checks the costs, come on top.
SHARE = 1 / 20
SECONDS = (1.0, 8.0)


def measure_profile(plan: Plan, on_progress: Callable[[float, str], None]) -> Profile:
    """Measure, on this machine and in fresh processes, every operation the plan can charge.

    It is not refused on a busy machine, where a comparison may still be wanted: the profile's
    flags say what is wrong with it.

    Raises:
        ValueError: the workload was not made by `baselines.workloads.load`.
        CalibrationError: a process failed.
    """
    if plan.workload.source is None:
        raise ValueError(
            f"workload {plan.workload.name} cannot be loaded in another process to be measured: "
            "get it from baselines.workloads.load, or give a profile"
        )
    name, data = plan.workload.source
    training_seconds = plan.budget.seconds * len(trajectories_of(plan.methods)) * len(plan.seeds)
    least, most = SECONDS
    seconds = min(max(least, SHARE * training_seconds), most)
    return calibrate_in_processes(
        "baselines.reference:calibratable",
        {"workload": name, "data": data, "k": plan.settings.k},
        # The half of it is set aside for starting the processes.
        seconds=2 * seconds,
        threads=torch.get_num_threads(),
        force=True,
        on_progress=on_progress,
        processes=LEAST_PROCESSES,
    )


def calibratable(workload: str, data: str | None = None, k: int = 5) -> Calibratable:
    """What `python -m timing calibrate baselines.reference:calibratable` measures.

    Args:
        workload: a name or a Python file, as of `--workload`.
        data: as of `--data`.
        k: snapshots in LAWA's window.
    """
    loaded = load(workload, None if data is None else Path(data))
    settings = Settings(loaded.learning_rate, k, "manual")
    plan = Plan(loaded, (), (), Budget(loaded.budget_seconds), settings)
    signature = {**plan.signature, **flops_per_step(loaded)}
    return Calibratable(signature, operations(loaded, settings))


def flops_per_step(workload: Workload) -> dict[str, int]:
    """FLOPs of a training step, the optimizer left out; nothing where they cannot be counted.

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


def operations(workload: Workload, settings: Settings) -> dict[str, Operation]:
    """Every operation of this workload, on a model of its own, as the training loop runs it."""
    torch.manual_seed(0)
    model = workload.make_model().train()
    base = workload.make_optimizer(model, settings.learning_rate)
    lawa = Lawa(model, base, settings.k, every="manual")
    ema = Ema(model, base)
    swa = Swa(model, base, workload.statistics_batches)
    schedule = LambdaLR(lawa.optimizer, constant)
    batches = workload.batches(0)
    loaded = [next(batches)]

    def load_data() -> None:
        loaded[0] = next(batches)

    def train_step() -> None:
        training_step(workload, model, lawa.optimizer, loaded[0])
        schedule.step()

    def average() -> None:
        with lawa.reading()[0]:
            pass

    def statistics() -> None:
        with swa.reading()[0]:
            pass

    found = {
        "load_data": Operation(load_data),
        "train_step": Operation(train_step),
        "ema_update": Operation(lambda: ema.after_step(0.0)),
        "collect": Operation(lawa.optimizer.collect, every=5),
        "swa_update": Operation(lambda: swa.average.update_parameters(model), every=10),
        "average": Operation(average, every=20),
        "evaluate": Operation(lambda: workload.evaluate(model), every=40),
    }
    if "statistics" in swa.read_operations:
        found["statistics"] = Operation(statistics, every=20)
    return found
