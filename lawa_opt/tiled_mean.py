"""Means a tile at a time, on any device, exact where that is asked for.

What lies between snapshots and mean stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lawa_opt.layout import Target
from lawa_opt.storage import Storage

# Writes the mean of the columns of a matrix, a snapshot each, into one column.
Writer = Callable[[Tensor, Tensor], object]


def write_tiled_mean(
    storage: Storage,
    pairs: Sequence[tuple[int, float]],
    targets: Sequence[Target],
    outs: Sequence[Tensor],
    *,
    exact: bool,
) -> None:
    """Write the mean of rows of a storage into tensors, a stretch at a time.

    Args:
        storage: of the snapshots.
        pairs: which rows, and their weights.
        targets: each stretch, and where it goes.
        outs: the tensors of all stretches.
        exact: give bit for bit what all rows agree on.
    """
    device, lengths = storage.param_device, storage.layout.lengths
    # Slots beside one another, as those of a full window are, are read where they are and in
    # their own order, whichever is the oldest.
    slots = [slot for slot, _ in pairs]
    first, last = min(slots), max(slots)
    beside = last - first == len(slots) - 1
    rows = storage.rows[first : last + 1] if beside else storage.rows
    weights = [weight for _, weight in (sorted(pairs) if beside else pairs)]
    staged = None
    if storage.is_offloaded or not beside:
        staged = _stage_rows(storage, range(len(rows)) if beside else slots)
    kinds = {(out.dtype, out.device) for out in outs}
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if _rounds_once(weights, device) and kinds == {(rows.dtype, device)}:
        dtype = rows.dtype
    shared = torch.empty(storage.layout.longest, dtype=dtype, device=device)
    write = _writer(weights, device, exact=exact)
    # What torch and Python do between two tiles costs as much as thousands of numbers: the tiles
    # have pushed it out of the cache.
    direct = kinds == {(dtype, device)}
    for (stretch, flat), columns in zip(targets, rows.t().split(lengths)[::2], strict=True):
        snapshots = columns if staged is None else staged(columns)
        if direct and flat is not None:
            write(snapshots, flat)
            continue
        mean = shared[: len(snapshots)]
        write(snapshots, mean)
        storage.layout.put(mean, (stretch, flat), outs)


def _rounds_once(weights: Sequence[float], device: torch.device) -> bool:
    """Return whether a mean in a narrow dtype adds up in float32, and is rounded at its end."""
    return device.type == "cuda" and len(set(weights)) == 1


def _stage_rows(storage: Storage, chosen: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return what copies these columns of a tile to where their mean is made."""
    buffer = torch.empty(
        len(chosen) * storage.layout.longest, dtype=storage.rows.dtype, device=storage.param_device
    )

    def staged(columns: Tensor) -> Tensor:
        there = columns.unbind(1)
        here = buffer[: len(chosen) * len(columns)].view(len(chosen), -1)
        snapshots = [there[index] for index in chosen]
        torch._foreach_copy_(
            list(here.unbind()), snapshots, non_blocking=storage.stream is not None
        )
        return here.t()

    return staged


def _writer(weights: Sequence[float], device: torch.device, *, exact: bool) -> Writer:
    """Return what writes the mean of columns with these weights, in the dtype of its target."""
    if len(weights) == 1:
        return lambda columns, mean: mean.copy_(columns[:, 0])
    write: Writer = _write_chain if device.type == "cpu" else _write_reduced
    if len(set(weights)) > 1:
        write = partial(_write_weighted, [weight / sum(weights) for weight in weights])
    return partial(_write_exact, write) if exact else write


def _write_reduced(columns: Tensor, mean: Tensor) -> None:
    torch.mean(columns, 1, dtype=mean.dtype, out=mean)


def _write_chain(columns: Tensor, mean: Tensor) -> None:
    first, *others = columns.unbind(1)
    mean.copy_(first)
    for other in others:
        mean.add_(other)
    mean.div_(columns.shape[1])


def _write_weighted(shares: Sequence[float], columns: Tensor, mean: Tensor) -> None:
    first, *others = columns.unbind(1)
    mean.copy_(first).mul_(shares[0])
    for other, share in zip(others, shares[1:], strict=True):
        mean.add_(other, alpha=share)


def _write_exact(write: Writer, columns: Tensor, mean: Tensor) -> None:
    """Write a mean that is bit for bit what all columns agree on, where they do."""
    write(columns, mean)
    first, *others = columns.unbind(1)
    # One snapshot after the other, for all() over a dimension of k takes longer than all the rest.
    same = first == others[0]
    for other in others[1:]:
        same &= first == other
    mean.copy_(torch.where(same, first, mean))
