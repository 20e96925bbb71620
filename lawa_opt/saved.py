"""The window in an optimizer's state dict.

Each parameter's entry carries its snapshots (`lawa_0`, the oldest held, and so on) and plain ints.
torch.distributed.checkpoint keeps nothing else of an optimizer, so nothing else is relied on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lawa_opt.window import local

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lawa_opt.interval import Interval
    from lawa_opt.window import Window

PREFIX = "lawa_"


def entries_of(window: Window, interval: Interval) -> dict[int, dict[str, Any]]:
    """For each tensor in the window, by its id, what a state dict says of it."""
    entries: dict[int, dict[str, Any]] = {}
    for ring in window.rings:
        held = ring.order()
        unused = [index for index in range(ring.k) if index not in held]
        for place, tensor in enumerate(ring.tensors):
            snapshots = {
                f"{PREFIX}{i}": as_sharded(ring.slots[index][place], tensor)
                for i, index in enumerate(held + unused)
            }
            entries[id(tensor)] = {
                **snapshots,
                f"{PREFIX}k": ring.k,
                f"{PREFIX}held": ring.held,
                f"{PREFIX}step": interval.step,
                f"{PREFIX}newest": interval.newest,
            }
    return entries


def as_sharded(slot: Tensor, tensor: Tensor) -> Tensor:
    """The slot as a DTensor where the tensor is one, so that a checkpoint can be resharded."""
    if not hasattr(tensor, "to_local"):
        return slot
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        slot,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def check(entries: Iterable[tuple[str, Tensor, Mapping[str, Any]]], k: int) -> None:
    """Refuse what does not fit these tensors or this k.

    Args:
        entries: for each tensor its name in a message, itself, and what the state dict says of it.
        k: snapshots the window to be filled can hold.

    Raises:
        ValueError: with the first thing that does not fit.
    """
    for name, tensor, entry in entries:
        if not entry:
            continue
        saved_k = entry.get(f"{PREFIX}k")
        if saved_k != k:
            raise ValueError(
                f"this state dict holds a window of k={saved_k} and this LAWA has k={k}: "
                f"load it into LAWA(..., k={saved_k})"
            )
        held = entry.get(f"{PREFIX}held")
        if not isinstance(held, int) or not 0 <= held <= k:
            raise ValueError(f"{name}: {PREFIX}held must be from 0 to {k}: {held!r}")
        for i in range(held):
            snapshot = entry.get(f"{PREFIX}{i}")
            if not isinstance(snapshot, Tensor):
                raise ValueError(f"{name}: snapshot {PREFIX}{i} of {held} is missing")
            if snapshot.shape != tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)} and its saved snapshot {PREFIX}{i} "
                    f"has {tuple(snapshot.shape)}: this state dict is of another model"
                )


def fill(
    window: Window, interval: Interval, saved: Sequence[tuple[Tensor, Mapping[str, Any]]]
) -> None:
    """Replace the window's snapshots and the interval's position by checked, saved ones."""
    window.clear()
    interval.step = max((entry.get(f"{PREFIX}step", 0) for _, entry in saved), default=0)
    interval.newest = max((entry.get(f"{PREFIX}newest", 0) for _, entry in saved), default=0)
    entries = {id(tensor): entry for tensor, entry in saved if entry}
    by_held: dict[int, list[Tensor]] = {}
    for tensor, entry in saved:
        if entry:
            by_held.setdefault(entry[f"{PREFIX}held"], []).append(tensor)
    for held, tensors in by_held.items():
        for ring in window.allocate(tensors):
            for i in range(held):
                snapshots = [_local_value(entries[id(t)][f"{PREFIX}{i}"], t) for t in ring.tensors]
                torch._foreach_copy_(ring.slots[i], snapshots)
            ring.held, ring.next = held, held % ring.k


def local_copies(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of saved values in the places, dtypes and shards of the tensors they are of."""
    copies = [torch.empty_like(local(tensor)) for tensor in tensors]
    pairs = zip(values, tensors, strict=True)
    torch._foreach_copy_(copies, [_local_value(value, tensor) for value, tensor in pairs])
    return copies


def _local_value(snapshot: Tensor, tensor: Tensor) -> Tensor:
    if hasattr(snapshot, "to_local"):
        return snapshot.to_local()  # type: ignore[no-any-return]
    if not hasattr(tensor, "to_local"):
        return snapshot
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    whole = snapshot.to(tensor.device)
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements).to_local()
