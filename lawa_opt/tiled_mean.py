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
    pairs = sorted(pairs) if beside else pairs
    staged = None
    if storage.is_offloaded or not beside:
        staged = _stage_rows(storage, slice(None) if beside else slots, len(slots))
    dtype = torch.promote_types(rows.dtype, torch.float32)
    shared = torch.empty(storage.layout.longest, dtype=dtype, device=device)
    write = _writer([weight for _, weight in pairs], device, exact=exact)
    # What torch and Python do between two tiles costs as much as thousands of numbers: the tiles
    # have pushed it out of the cache.
    direct = all(out.dtype == dtype and out.device == device for out in outs)
    for (stretch, flat), columns in zip(targets, rows.t().split(lengths)[::2], strict=True):
        snapshots = columns if staged is None else staged(columns)
        if direct and flat is not None:
            write(snapshots, flat)
            continue
        mean = shared[: len(snapshots)]
        write(snapshots, mean)
        storage.layout.put(mean, (stretch, flat), outs)


def _stage_rows(
    storage: Storage, chosen: slice | list[int], count: int
) -> Callable[[Tensor], Tensor]:
    """Return what copies these columns of a tile, so many, to where their mean is made."""
    buffer = torch.empty(
        count * storage.layout.longest, dtype=storage.rows.dtype, device=storage.param_device
    )

    def staged(columns: Tensor) -> Tensor:
        there = columns.t()[chosen]
        here = buffer[: there.numel()].view(there.shape)
        # One by one, for a matrix with gaps would be copied where it is first.
        for row, snapshot in zip(here, there, strict=True):
            row.copy_(snapshot, non_blocking=storage.stream is not None)
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
