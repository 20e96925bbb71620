"""What a comparison will take, from a few real steps, before anything long starts."""

from __future__ import annotations

import copy
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.experiment.comparison import Plan, trajectories_of
from baselines.methods.method import find
from baselines.training.loop import training_step
from baselines.workloads.base import WorkloadError
from baselines.workloads.check import faults
from timing import Profile, limits
from timing.calibration.measure import MIN_PASSES, WARM_UP_STEPS
from timing.calibration.warnings import LEAST_PROCESSES
from timing.tracebacks import is_lack_of_memory, message_of

LEAST_TIMED_STEPS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on the model's device.

    Counted on the real model, optimizer and batch: the activations are the tensors that one forward
    pass saved for its backward pass. What kernels use for a moment, and the libraries themselves,
    come on top.

    Attributes:
        parameters: with buffers.
        gradients: after a backward pass.
        optimizer: its state after a step.
        activations: saved for the backward pass of one batch.
        windows: what the methods of the dearest training hold and copy while read.
        jobs: trainings at the same time on this device.
        available: free before the model was made.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    windows: int
    jobs: int
    available: int

    @property
    def needed(self) -> int:
        """Of all jobs together."""
        parts = self.parameters + self.gradients + self.optimizer + self.activations + self.windows
        return self.jobs * parts


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
        problems: what is wrong with the plan, a line each; empty if it can start.
    """

    memory: Memory
    step_seconds: float
    evaluation_seconds: float
    steps_per_run: int
    rst_seconds_per_run: float
    runs: int
    trainings: int
    wall_seconds: float
    problems: tuple[str, ...]


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
    groups = trajectories_of(plan)
    available = _available()
    try:
        with _with_no_more_than(available):
            found = faults(workload)
            gc.collect()
            available = _available()
            torch.manual_seed(0)
            model = workload.make_model().train()
            optimizer = workload.make_optimizer(model, plan.settings.learning_rate)
            saved: dict[int, int] = {}
            with _counting_saved(saved, model):
                training_step(workload, model, optimizer, next(workload.batches(0)))
            step_seconds = _step_seconds(plan, model, optimizer, timed_seconds)
            evaluation_seconds = _seconds(lambda: workload.evaluate(model))
            memory = Memory(
                parameters=_bytes_of([*model.parameters(), *model.buffers()]),
                gradients=_bytes_of(_gradients(model)),
                optimizer=_bytes_of(_tensors(optimizer.state)),
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
                f"machine, of which {_size(available)} are free: take a smaller model, batch or k "
                f"({message_of(error):.120})"
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
            f"about {_size(memory.needed)} of memory are needed and {_size(available)} are free: "
            "take a smaller model, batch, k or number of jobs"
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
        problems=tuple(found),
    )


def window_bytes(methods: tuple[str, ...], plan: Plan, model: nn.Module) -> int:
    """Count the bytes that methods of one training hold, while the dearest of them is read.

    Counted on a copy of the workload's own model on the meta device, where tensors have sizes and
    take no memory. A method that cannot do without numbers is counted on the model itself.

    Args:
        methods: that follow one training.
        plan: whose settings they have.
        model: of the plan's workload; it may be trained a step.

    Raises:
        MethodError: a method cannot be made.
    """
    # BatchNorm statistics are made of real inputs, and hold nothing.
    meta = replace(plan, workload=replace(plan.workload, bn_batches=()))
    base = plan.workload.make_optimizer(model, plan.settings.learning_rate)
    try:
        return _window_bytes(methods, meta, *_on_meta(model, base))
    # Whatever a method does there that cannot be done: if it is its fault it fails again.
    except Exception:
        gc.collect()
        return _window_bytes(methods, plan, model, base)


def _window_bytes(methods: tuple[str, ...], plan: Plan, model: nn.Module, base: Optimizer) -> int:
    optimizer = base
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    settings = replace(plan.settings, every=1)
    averagers = []
    most = 0
    # What is there so far is out of the collector's sight until it is unfrozen: only what the
    # averagers make is listed.
    gc.freeze()
    try:
        for name in methods:
            averager = find(name).averager(model, optimizer, plan.workload, settings)
            averagers.append(averager)
            optimizer = averager.optimizer
        optimizer.step()
        for averager in averagers:
            averager.after_step(1.0)
        parts = [*model.parameters(), *model.buffers(), *_gradients(model), *_tensors(base.state)]
        own = _storages(parts, model)
        for averager in averagers:
            with averager.evaluation_model()[0]:
                # Not isinstance: it would wake lazy objects of other libraries.
                made = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
                held = _storages(made, model)
                most = max(most, sum(size for at, size in held.items() if at not in own))
    finally:
        gc.unfreeze()
    return most


def _on_meta(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Make a copy of both without the model's numbers, in which what is tied stays tied."""
    copies: dict[int, Tensor] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        copies[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = torch.empty_like(buffer, device="meta")
    model, optimizer = copy.deepcopy((model, optimizer), copies)
    for group in optimizer.param_groups:
        # There are no such kernels for it.
        group.update(dict.fromkeys(group.keys() & {"fused", "foreach"}, False))
    return model, optimizer


def table(plan: Plan, estimate: Estimate) -> Table:
    """The estimate for a terminal."""
    workload, memory = plan.workload, estimate.memory
    shown = Table(title=f"dry run: {workload.name}", show_header=False)
    rows = {
        "data": f"{workload.data.get('source', '')}, sha256 {workload.data['sha256'][:12]}…",
        "parameters and buffers": _size(memory.parameters),
        "gradients": _size(memory.gradients),
        "optimizer state": _size(memory.optimizer),
        "activations saved in a step": _size(memory.activations),
        "averages, while read": _size(memory.windows),
        f"memory needed, {memory.jobs} at a time": f"{_size(memory.needed)}, "
        f"{_size(memory.available)} free",
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
    """Median seconds of a training step; the first ones are left out."""
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


def _available() -> int:
    """Bytes that are free where models are put."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return limits.free_memory_bytes()


@contextmanager
def _with_no_more_than(free: int) -> Iterator[None]:
    """Let a container's process take what is free and no more: it fails where it would be killed.

    What is killed for taking more than its container has can say nothing.
    """
    if limits.memory_bytes() == psutil.virtual_memory().total or torch.cuda.is_initialized():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = psutil.Process().memory_info().data
    # A little is for what the system keeps of a process.
    wanted = taken + int(0.97 * free)
    most = min([wanted, *(n for n in (soft, hard) if n != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _counting_saved(saved: dict[int, int], model: nn.Module) -> Iterator[None]:
    """Note the size of each storage that autograd saves, but those of the model itself."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _storages(tensors: Iterable[Tensor], model: nn.Module) -> dict[int, int]:
    """Return the bytes of each storage behind those tensors that are where the model is."""
    where = next(model.parameters()).device.type
    storages = (x.untyped_storage() for x in tensors if x.device.type == where)
    return {storage._cdata: storage.nbytes() for storage in storages}


def _size(size: int) -> str:
    """Bytes, for people."""
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while value >= 1024 and unit != "GiB":
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _time(seconds: float) -> str:
    """Seconds, for people."""
    for least, unit, name in ((7200, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= least:
            return f"{seconds / unit:.3g} {name}"
    return f"{1000 * seconds:.3g} ms"
