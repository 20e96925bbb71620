"""The weighted mean of snapshots, by the fastest way that torch has; the one place that knows it.

A mean is made a tile at a time: a reading moves k + 1 times the tensors' bytes through memory.
`embedding_bag.py` makes that of trained weights on the CPU, `tiled_mean.py` any other of a window,
and `running_mean.py` that of snapshots in files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lawa_opt.embedding_bag import BLOCKS, supports_embedding_bag, write_embedding_bag_mean
from lawa_opt.layout import ALIGNMENT, Cut, next_multiple
from lawa_opt.running_mean import Reader, running_mean
from lawa_opt.sharding import local
from lawa_opt.storage import Snapshots
from lawa_opt.tiled_mean import write_tiled_mean

# A smaller tile pays in calls, a larger one leaves the cache; a GPU wants few, large kernels.
TILE = {"cpu": 1 << 20}
TILE_ELSEWHERE = 1 << 22

# Tensors up to this size share tiles: fewer calls, for one more copy. The mean of a larger one is
# made in the place where it goes. On the CPU that of bags is copied anyway, so all share that can.
SMALL = {"cpu": TILE["cpu"]}
SMALL_ELSEWHERE = 1 << 20

# CUDA's kernels count bytes in 32 bits, and go through rows that are farther apart one by one.
FARTHEST_BYTES = {"cuda": 1 << 31}


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
        running_mean(rows, weights, out)


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


def parted_for(
    tensors: Sequence[Tensor], k: int, dtype: torch.dtype | None, device: torch.device
) -> list[list[Tensor]]:
    """Return tensors in parts, each so small that the mean of k rows is made in one pass.

    Args:
        tensors: parts of them that this process holds, in their order.
        k: rows.
        dtype: of the rows; by default, of the tensors.
        device: where the rows are.
    """
    farthest = FARTHEST_BYTES.get(device.type)
    parts: list[list[Tensor]] = []
    taken = 0
    for tensor in tensors:
        itemsize = (dtype or tensor.dtype).itemsize
        nbytes = (k - 1) * next_multiple(local(tensor).numel(), ALIGNMENT) * itemsize
        if not parts or (farthest is not None and taken + nbytes > farthest):
            parts.append([])
            taken = 0
        parts[-1].append(tensor)
        taken += nbytes
    return parts


# Of many small tensors, making a view each is a good part of a reading. Inference mode makes one in
# three quarters of the time, and autograd still sees that `outs` were written.
@torch.inference_mode()
def _stored_mean(
    rows: Snapshots, weights: Sequence[float], outs: Sequence[Tensor], *, exact: bool
) -> None:
    storage = rows.storage
    pairs = [pair for pair in zip(rows.slots, weights, strict=True) if pair[1]]
    laid_out = storage.layout.conforming(outs)
    targets = storage.layout.targets(laid_out)
    storage.begin_reading()
    on_cpu = storage.param_device.type == storage.rows.device.type == "cpu"
    fits = supports_embedding_bag(storage.rows.dtype, {out.dtype for out in outs})
    if on_cpu and fits and not exact and len(pairs) > 1:
        write_embedding_bag_mean(storage, sorted(pairs), targets, laid_out)
    else:
        write_tiled_mean(storage, pairs, targets, laid_out, exact=exact)
    storage.end_reading()
    for out, same in zip(outs, laid_out, strict=True):
        if out is not same:
            out.copy_(same)
