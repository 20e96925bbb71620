"""The processes that train together under `torchrun`; one process alone is a world of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, distributed, nn


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` has started, if it has, for as long as this is open."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Functions in it take the group of the moment as their default. Imported after it, as DDP does,
    # they would keep it for good, and its threads would run into the end of the interpreter, which
    # now and then aborts the process.
    import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, from 0; rank 0 evaluates, keeps and tells."""
    return distributed.get_rank() if _together() else 0


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def wait() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        distributed.barrier()


def replicated(model: nn.Module) -> nn.Module:
    """The model to call in training: its gradients are the means over all ranks'."""
    return nn.parallel.DistributedDataParallel(model) if world() > 1 else model


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; each must call."""
    if world() > 1:
        value = value.clone()
        distributed.all_reduce(value)
        value /= world()
    return value


def from_first(value: float | None, device: torch.device) -> float:
    """Rank 0's number, on every rank; each must call, the others with None."""
    if world() == 1:
        assert value is not None
        return value
    sent = torch.tensor(0.0 if value is None else value, dtype=torch.float64, device=device)
    distributed.broadcast(sent, src=0)
    return float(sent)
