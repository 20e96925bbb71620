"""The weighted mean of snapshots, by the fastest way that torch has; the one place that knows it.

A mean is made a tile at a time, so that what lies between snapshots and mean stays in the cache: a
reading moves k + 1 times the tensors' bytes through memory. On the CPU a tile of trained weights is
one look-up of blocks of all snapshots, each weighted, in bags, as for embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from lawa_opt.layout import ALIGNMENT, Cut, Layout, Stretch
from lawa_opt.storage import Snapshots, Storage

# A smaller tile pays in calls, a larger one leaves the cache; a GPU wants few, large kernels.
TILE = {"cpu": 1 << 20}
TILE_ELSEWHERE = 1 << 22

# Tensors up to this size share tiles: fewer calls, for one more copy. The mean of a larger one is
# made in the place where it goes. On the CPU that of bags is copied anyway, so all share that can.
SMALL = {"cpu": TILE["cpu"]}
SMALL_ELSEWHERE = 1 << 13

# Of snapshots that come one by one: torch runs an operation on so few elements on the calling
# thread, and they stay in its cache.
RUNNING_TILE = 1 << 15

# How many neighbouring numbers of each snapshot a bag takes: as many as there are registers for
# their sums, so that each snapshot is gone through once.
BLOCKS = {torch.bfloat16: 256, torch.float32: 384, torch.float64: 128}

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

# Reads a snapshot, as flat tensors.
Reader = Callable[[], Iterable[Tensor]]
# Writes the mean of the columns of a matrix, a snapshot each, into one column.
Writer = Callable[[Tensor, Tensor], object]
# Each stretch of a row, and it in the one tensor that it is of, if it is of one.
Targets = Sequence[tuple[Stretch, Tensor | None]]


def weighted_mean(
    rows: Snapshots | Sequence[Reader],
    weights: Sequence[float],
    out: Sequence[Tensor],
    *,
    exact: bool = True,
) -> None:
    """Write the weighted mean of snapshots into tensors.

    It adds up in float32 or wider and rounds once more, to the dtype of each tensor of `out`.

    Args:
        rows: the snapshots, rows of a storage; or what reads each one, maybe twice, as flat tensors
            in the order of `out`, so that no two need be in memory.
        weights: of each snapshot, from 0 on, of any sum above 0. One of weight 0 is not looked at.
        out: of any floating or complex dtype; for rows of a storage of its tensors' shapes, else
            flat.
        exact: give bit for bit what all snapshots agree on; of a storage's rows this takes longer.
    """
    if isinstance(rows, Snapshots):
        _stored_mean(rows, weights, out, exact=exact)
    else:
        _running_mean(rows, weights, out)


def reference_mean(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of tensors in float64: slow, obvious, and what the others are."""
    total = torch.zeros_like(rows[0], dtype=torch.promote_types(rows[0].dtype, torch.float64))
    for row, weight in zip(rows, weights, strict=True):
        if weight:
            total += weight * row.to(total.dtype)
    return total / sum(weights)


def cut_for(dtype: torch.dtype, device: torch.device) -> Cut:
    """Return how a row of snapshots is best cut for their mean on a device."""
    unit = BLOCKS.get(dtype, ALIGNMENT)
    longest = TILE.get(device.type, TILE_ELSEWHERE) // unit * unit
    return Cut(unit, longest, min(longest, SMALL.get(device.type, SMALL_ELSEWHERE)))


# Of many small tensors, making a view each is a good part of a reading. Inference mode makes one in
# three quarters of the time, and autograd still sees that `outs` were written.
@torch.inference_mode()
def _stored_mean(
    rows: Snapshots, weights: Sequence[float], outs: Sequence[Tensor], *, exact: bool
) -> None:
    storage = rows.storage
    pairs = [pair for pair in zip(rows.slots, weights, strict=True) if pair[1]]
    laid_out = storage.layout.conforming(outs)
    targets = list(zip(storage.layout.stretches, storage.layout.flat(laid_out), strict=True))
    storage.begin_reading()
    on_cpu = storage.param_device.type == storage.rows.device.type == "cpu"
    dtypes = {out.dtype for out in outs}
    if on_cpu and not exact and len(pairs) > 1 and _fits_bags(storage.rows.dtype, dtypes):
        _write_in_bags(storage, sorted(pairs), targets, laid_out)
    else:
        _write_in_tiles(storage, pairs, targets, laid_out, exact=exact)
    storage.end_reading()
    for out, same in zip(outs, laid_out, strict=True):
        if out is not same:
            out.copy_(same)


def _fits_bags(snapshots: torch.dtype, outs: set[torch.dtype]) -> bool:
    """Return whether means of these snapshots that are written to these dtypes may be of bags.

    A mean of bfloat16 that is to be wider must not be rounded, as bags round it.
    """
    return snapshots in BLOCKS and (snapshots != torch.bfloat16 or outs == {torch.bfloat16})


def _write_in_bags(
    storage: Storage, pairs: list[tuple[int, float]], targets: Targets, outs: Sequence[Tensor]
) -> None:
    key = tuple(pairs)
    if key not in storage.prepared:  # to make it takes as long as a small mean
        storage.prepared.clear()
        storage.prepared[key] = _bags_of(storage.rows, pairs, storage.layout.longest)
    mean_of = storage.prepared[key]
    for target in targets:
        # No name for the mean: it is freed before the next, or both leave the heap, page by page.
        _put(mean_of(target[0].begin, target[0].end), storage.layout, target, outs)


def _bags_of(
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


def _write_in_tiles(
    storage: Storage,
    pairs: Sequence[tuple[int, float]],
    targets: Targets,
    outs: Sequence[Tensor],
    *,
    exact: bool,
) -> None:
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
        _put(mean, storage.layout, (stretch, flat), outs)


def _put(
    mean: Tensor, layout: Layout, target: tuple[Stretch, Tensor | None], outs: Sequence[Tensor]
) -> None:
    """Copy the mean of a stretch to where it goes."""
    stretch, flat = target
    if flat is None:
        layout.scatter(mean, stretch, outs)
    else:
        flat.copy_(mean)


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


def _running_mean(
    rows: Sequence[Reader],
    weights: Sequence[float],
    outs: Sequence[Tensor],
    *,
    infinities: bool = False,
) -> None:
    """Write the mean of snapshots read one by one, as m + (x - m) * share: equal values stay.

    Infinities, as in a mask, have no difference: `infinities` keeps equal ones, at some cost.
    """
    # Tile by tile: memory for whole tensors, taken and left again and again, is not all given back.
    tiles = list(_tiles(outs))
    wides = [torch.promote_types(tile.dtype, torch.float32) for tile in tiles]
    means = [
        tile if wide == tile.dtype else torch.empty_like(tile, dtype=wide)
        for tile, wide in zip(tiles, wides, strict=True)
    ]
    total = 0.0
    for read, weight in zip(rows, weights, strict=True):
        if not weight:
            continue
        total += weight
        for mean, x in zip(means, _tiles(read()), strict=True):
            if weight == total:
                mean.copy_(x)
            elif infinities:
                x = x.to(mean.dtype)
                torch.where(x == mean, x, torch.lerp(mean, x, weight / total), out=mean)
            else:
                mean.lerp_(x.to(mean.dtype), weight / total)
    if not infinities and any(bool(mean.sum().isnan()) for mean in means):
        _running_mean(rows, weights, outs, infinities=True)
        return
    for tile, mean in zip(tiles, means, strict=True):
        if mean is not tile:
            tile.copy_(mean)


def _tiles(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (tile for tensor in tensors for tile in tensor.split(RUNNING_TILE))
