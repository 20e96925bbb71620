"""Means on the CPU, by looking up blocks of all snapshots in bags, each weighted.

torch has made that fast for embeddings: one pass over all rows, in all threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lawa_opt.layout import Target
from lawa_opt.storage import Storage

# How many neighbouring numbers of each snapshot a bag takes: as many as there are registers for
# their sums, so that each snapshot is gone through once.
BLOCKS = {torch.bfloat16: 256, torch.float32: 384, torch.float64: 128}

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def supports_embedding_bag(snapshots: torch.dtype, outs: set[torch.dtype]) -> bool:
    """Return whether means of these snapshots that are written to these dtypes may be of bags.

    A mean of bfloat16 that is to be wider must not be rounded, as bags round it.
    """
    return snapshots in BLOCKS and (snapshots != torch.bfloat16 or outs == {torch.bfloat16})


def write_embedding_bag_mean(
    storage: Storage,
    pairs: list[tuple[int, float]],
    targets: Sequence[Target],
    outs: Sequence[Tensor],
) -> None:
    """Write the mean of rows of a storage into tensors, a stretch at a time.

    Args:
        storage: on the CPU, of a dtype in `BLOCKS`.
        pairs: which rows, and their weights.
        targets: each stretch, and where it goes.
        outs: the tensors of all stretches.
    """
    key = tuple(pairs)
    if key not in storage.prepared:  # to make it takes as long as a small mean
        storage.prepared.clear()
        storage.prepared[key] = _embedding_bag_mean(storage.rows, pairs, storage.layout.longest)
    mean_of = storage.prepared[key]
    for target in targets:
        # No name for the mean: it is freed before the next, or both leave the heap, page by page.
        storage.layout.put(mean_of(target[0].begin, target[0].end), target, outs)


def _embedding_bag_mean(
    rows: Tensor, pairs: Sequence[tuple[int, float]], longest: int
) -> Callable[[int, int], Tensor]:
    """Return what makes the mean of rows of a matrix, between two columns, in their dtype.

    It adds up in float32 or wider and rounds once, in one pass over all rows: a weighted sum of
    looked-up blocks, which torch has made fast for embeddings. No setting narrows it, as some do
    with products. The rows come in one scattered order: processors try to foresee where the next
    block is, and two steps alike, one after the other, make some row lengths take twice as long.

    Args:
        rows: contiguous, on the CPU, and of a multiple of the dtype's `BLOCKS` columns.
        pairs: which rows, and their weights.
        longest: the most columns at a time. The first of them is at a multiple of `BLOCKS`.
    """
    block = BLOCKS[rows.dtype]
    there = rows.device  # not torch's default, which a user may have set
    total = sum(weight for _, weight in pairs)
    scattered = sorted(pairs, key=lambda pair: pair[0] * pair[0] * GOLDEN_RATIO % 1)
    parts = [(row, part) for row, w in scattered for part in _parts(w / total, rows.dtype)]
    blocks = rows.view(-1, block)
    bags = torch.arange(-(-longest // block), dtype=torch.int32, device=there)
    starts = torch.tensor([row for row, _ in parts], dtype=torch.int32, device=there)
    found = (bags[:, None] + starts * (rows.shape[1] // block)).flatten()
    shares = torch.tensor([part for _, part in parts], dtype=rows.dtype, device=there)
    shares = shares.repeat(len(bags))
    begins = bags * len(starts)

    def mean(begin: int, end: int) -> Tensor:
        count = -(-(end - begin) // block)
        wanted = found, begins, shares
        if count < len(bags):  # a slice takes as long as thousands of numbers
            looked_up = count * len(starts)
            wanted = found[:looked_up], begins[:count], shares[:looked_up]
        sums: Tensor = torch.embedding_bag(
            blocks[begin // block :], *wanted[:2], mode=0, per_sample_weights=wanted[2]
        )[0]
        return sums.view(-1)[: end - begin]

    return mean


def _parts(weight: float, dtype: torch.dtype) -> list[float]:
    """Return what to multiply by, in turn, so that the sum is that of this weight.

    bfloat16 cuts a weight to 8 bits: what that leaves is a second one, of 8 more. None is negative,
    for of an infinite snapshot that would make not a number.
    """
    if dtype != torch.bfloat16:
        return [weight]
    mantissa, exponent = math.frexp(weight)
    upper = math.ldexp(math.floor(mantissa * 256), exponent - 8)
    return [upper, weight - upper] if upper < weight else [upper]
