"""What makes the mean of snapshots that lie side by side: the fastest way that torch has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

# How many neighbouring numbers of each snapshot a bag takes: as many as there are registers for
# their sums, so that each snapshot is gone through once.
BLOCKS = {torch.bfloat16: 256, torch.float32: 384, torch.float64: 128}

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def in_bags(snapshots: torch.dtype, outs: set[torch.dtype]) -> bool:
    """Whether means of these snapshots that are written to these dtypes can be of `bags_of`.

    A mean of bfloat16 that is to be wider must not be rounded, as bags round it.
    """
    return snapshots in BLOCKS and (snapshots != torch.bfloat16 or outs == {torch.bfloat16})


def bags_of(rows: Tensor, order: Sequence[int], largest: int) -> Callable[[int, int], Tensor]:
    """What makes the mean of these rows of a matrix on the CPU, between two columns, in its dtype.

    It adds up in float32 or wider and rounds once, in one pass over all rows: a weighted sum of
    looked-up blocks, which torch has made fast for embeddings. No setting narrows it, as some do
    with products. The rows come in one scattered order: processors try to foresee where the next
    block is, and two steps alike, one after the other, make some row lengths take twice as long.

    Args:
        rows: contiguous, and of a multiple of the dtype's `BLOCKS` columns.
        order: which rows, however they are sorted.
        largest: the most columns at a time. The first of them is at a multiple of `BLOCKS`.
    """
    block = BLOCKS[rows.dtype]
    there = rows.device  # not torch's default, which a user may have set
    parts = torch.tensor(_parts(1 / len(order), rows.dtype), dtype=rows.dtype, device=there)
    blocks = rows.view(-1, block)
    scattered = sorted(order, key=lambda row: row * row * GOLDEN_RATIO % 1)
    bags = torch.arange(-(-largest // block), dtype=torch.int32, device=there)
    starts = torch.tensor(scattered, dtype=torch.int32, device=there).repeat_interleave(len(parts))
    found = (bags[:, None] + starts * (rows.shape[1] // block)).flatten()
    weights = parts.repeat(len(bags) * len(order))
    begins = bags * len(starts)

    def mean(begin: int, end: int) -> Tensor:
        count = -(-(end - begin) // block)
        wanted = found, begins, weights
        if count < len(bags):  # a slice takes as long as thousands of numbers
            looked_up = count * len(starts)
            wanted = found[:looked_up], begins[:count], weights[:looked_up]
        sums: Tensor = torch.embedding_bag(
            blocks[begin // block :], *wanted[:2], mode=0, per_sample_weights=wanted[2]
        )[0]
        return sums.view(-1)[: end - begin]

    return mean


def _parts(weight: float, dtype: torch.dtype) -> list[float]:
    """What to multiply by, one after the other, so that together it is by this weight.

    bfloat16 cuts a weight to 8 bits: what that leaves is a second one, of 8 more. None is negative,
    for of an infinite snapshot that would make not a number.
    """
    if dtype != torch.bfloat16:
        return [weight]
    mantissa, exponent = math.frexp(weight)
    upper = math.ldexp(math.floor(mantissa * 256), exponent - 8)
    return [upper, weight - upper] if upper < weight else [upper]


def mean_writer(
    count: int, device: torch.device, *, exact: bool
) -> Callable[[Tensor, Tensor], object]:
    """What writes the mean of the columns of a matrix, so many, into one column.

    It adds up in the dtype of that column, float32 or wider. If `exact`, it gives bit for bit what
    all columns agree on.
    """
    if count == 1:
        return lambda columns, mean: mean.copy_(columns[:, 0])
    write: Callable[[Tensor, Tensor], object] = _chain if device.type == "cpu" else _reduced
    return partial(_exact_where_same, write) if exact else write


def _reduced(columns: Tensor, mean: Tensor) -> None:
    torch.mean(columns, 1, dtype=mean.dtype, out=mean)


def _chain(columns: Tensor, mean: Tensor) -> None:
    first, *others = columns.unbind(1)
    mean.copy_(first)
    for other in others:
        mean.add_(other)
    mean.div_(columns.shape[1])


def _exact_where_same(
    write: Callable[[Tensor, Tensor], object], columns: Tensor, mean: Tensor
) -> None:
    write(columns, mean)
    first, *others = columns.unbind(1)
    # One snapshot after the other, for all() over a dimension of k takes longer than all the rest.
    same = first == others[0]
    for other in others[1:]:
        same &= first == other
    mean.copy_(torch.where(same, first, mean))
