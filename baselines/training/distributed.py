"""The processes that train together under `torchrun`; one process alone is a world of one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_T = TypeVar("_T")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` has started, if it has, for as long as this is open."""
    if launched_ranks() == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Functions in it take the group of the moment as their default. Imported after it, as DDP does,
    # they would keep it for good, and its threads would run into the end of the interpreter, which
    # now and then aborts the process.
    import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def launched_ranks() -> int:
    """Return how many processes `torchrun` has started, whether they have joined or not yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return which of the processes that `torchrun` has started this is, joined or not, from 0."""
    return int(os.environ["RANK"]) if launched_ranks() > 1 else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Return which of them this is, from 0; rank 0 evaluates, keeps and tells."""
    return dist.get_rank() if _together() else 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def ddp(model: nn.Module, *, in_part: bool = False) -> nn.Module:
    """Return the model to call in training: its gradients are the means over all ranks'.

    Args:
        model: that is trained.
        in_part: whether a step may leave parameters out, the same on all ranks.
    """
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=in_part)


def mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks; each must call."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def of_all_ranks(operations: tuple[str, ...], *, alike: bool) -> tuple[str, ...]:
    """Return the operations that all ranks have run; each must call.

    Args:
        operations: of this rank.
        alike: whether those of all ranks are known to be the same, so that nothing need be sent.
    """
    if alike or world_size() == 1:
        return operations * world_size()
    return tuple(itertools.chain.from_iterable(gathered(operations)))


def gathered(value: _T) -> list[_T]:
    """Return what each rank has, the first rank's first; each must call."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast_from_rank0(value: float | None, device: torch.device) -> float:
    """Return rank 0's number, on every rank; each must call, the others with None."""
    if world_size() == 1:
        assert value is not None
        return value
    sent = torch.tensor(0.0 if value is None else value, dtype=torch.float64, device=device)
    dist.broadcast(sent, src=0)
    return float(sent)
