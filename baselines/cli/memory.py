"""Count the bytes that training needs, on the real model, optimizer and batch."""

from __future__ import annotations

import copy
import gc
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.experiment.plan import Plan
from baselines.methods.method import Method
from baselines.training.training import begin_averagers
from timing import limits


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
        windows: what the methods of one training, the largest, hold and copy at an evaluation.
        rounded: a copy of the model, whose weights are read rounded; 0 if they are not.
        jobs: trainings at the same time on this device.
        available: free before the model was made.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    windows: int
    rounded: int
    jobs: int
    available: int

    @property
    def needed(self) -> int:
        """Return the bytes of all jobs together."""
        held = self.parameters + self.gradients + self.optimizer + self.activations
        return self.jobs * (held + self.windows + self.rounded)


def window_bytes(methods: Sequence[Method], plan: Plan, model: nn.Module) -> int:
    """Count the bytes that methods of one training hold, while the largest is evaluated.

    Counted on a copy of the workload's own model on the meta device, where tensors have sizes and
    take no memory. A method that cannot do without numbers is counted on the model itself.

    Args:
        methods: that follow one training.
        plan: that they are of.
        model: of the plan's workload; it may be trained a step.

    Raises:
        MethodError: a method cannot be made.
    """
    # BatchNorm statistics are made of real inputs, and hold nothing.
    meta = replace(plan, workload=replace(plan.workload, bn_batches=()))
    base = methods[0].begin_recipe(model, plan.workload, plan.rate_of(methods[0])).optimizer
    try:
        return _window_bytes(methods, meta, *_on_meta(model, base))
    # Whatever a method does there that cannot be done: if it is its fault it fails again.
    except Exception:
        gc.collect()
        return _window_bytes(methods, plan, model, base)


def _window_bytes(methods: Sequence[Method], plan: Plan, model: nn.Module, base: Optimizer) -> int:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    # Each operation is run once, whenever it would be due.
    methods = [replace(method, averager=method.averager.for_calibration()) for method in methods]
    most = 0
    # What is there so far is out of the collector's sight until it is unfrozen: only what the
    # averagers make is listed.
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        averagers, optimizer = begin_averagers(methods, model, base, plan.workload)
        optimizer.step()
        for averager in averagers:
            for operation in averager.operations().values():
                operation.run()
        # As at most evaluations: a window cannot lend what has moved on since its newest snapshot.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        parts = [
            *model.parameters(),
            *model.buffers(),
            *gradients_of(model),
            *tensors_in(base.state),
        ]
        own = storages_of(parts, model)
        for averager in averagers:
            with averager.evaluation_model()[0]:
                # Not isinstance: it would wake lazy objects of other libraries.
                made = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
                held = storages_of(made, model)
                most = max(most, sum(size for at, size in held.items() if at not in own))
    finally:
        # What the process itself had frozen stays so.
        if not was_frozen:
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


def available_bytes() -> int:
    """Return the bytes that are free where models are put."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return limits.free_memory_bytes()


@contextmanager
def with_no_more_than(free: int) -> Iterator[None]:
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
def counting_saved(saved: dict[int, int], model: nn.Module) -> Iterator[None]:
    """Note the size of each storage that autograd saves, but those of the model itself."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield all tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradients_of(model: nn.Module) -> list[Tensor]:
    """Return the gradients that a model has."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def storages_of(tensors: Iterable[Tensor], model: nn.Module) -> dict[int, int]:
    """Return the bytes of each storage behind those tensors that are where the model is."""
    where = next(model.parameters()).device.type
    storages = (x.untyped_storage() for x in tensors if x.device.type == where)
    return {storage._cdata: storage.nbytes() for storage in storages}


def size_in_words(size: int) -> str:
    """Return bytes as text for people."""
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while value >= 1024 and unit != "GiB":
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
