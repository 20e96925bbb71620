"""The mean of snapshots that come one by one, so that no two need be in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

# torch runs an operation on so few elements on the calling thread, and they stay in its cache.
RUNNING_TILE = 1 << 15

# Reads a snapshot, as flat tensors.
Reader = Callable[[], Iterable[Tensor]]


def running_mean(
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
        running_mean(rows, weights, outs, infinities=True)
        return
    for tile, mean in zip(tiles, means, strict=True):
        if mean is not tile:
            tile.copy_(mean)


def _tiles(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (tile for tensor in tensors for tile in tensor.split(RUNNING_TILE))
