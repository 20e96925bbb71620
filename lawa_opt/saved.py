"""The window in an optimizer's state dict.

Each parameter's entry carries its snapshots (`lawa_0`, the oldest held, and so on) and plain ints.
torch.distributed.checkpoint keeps nothing else of an optimizer, so nothing else is relied on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lawa_opt.distributed import local, part_of, split_dim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.distributed.device_mesh import DeviceMesh

    from lawa_opt.interval import Interval
    from lawa_opt.window import Window

PREFIX = "lawa_"


def entries_of(window: Window, interval: Interval, *, averaged: bool) -> dict[int, dict[str, Any]]:
    """For each tensor in the window, by its id, what a state dict says of it.

    Args:
        window: its snapshots are not copied.
        interval: its position, and whether it is switched on.
        averaged: whether averaged weights are in the model, and so in a checkpoint of it.
    """
    entries: dict[int, dict[str, Any]] = {}
    for ring in window.rings:
        ring.settle()
        held = ring.order()
        unused = [index for index in range(ring.k) if index not in held]
        for place, tensor in enumerate(ring.tensors):
            snapshots = {
                f"{PREFIX}{i}": _as_sharded(ring.slots[index][place], tensor, ring.mesh)
                for i, index in enumerate(held + unused)
            }
            entries[id(tensor)] = {
                **snapshots,
                f"{PREFIX}k": ring.k,
                f"{PREFIX}held": ring.held,
                # The mean adds up slot by slot, and so depends on them in its last bit.
                f"{PREFIX}next": ring.next,
                f"{PREFIX}step": interval.step,
                f"{PREFIX}newest": interval.newest,
                f"{PREFIX}enabled": int(interval.enabled),
                f"{PREFIX}averaged": int(averaged),
            }
    return entries


def _as_sharded(slot: Tensor, tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """The slot as a DTensor where it is only a part, so that a checkpoint can be resharded."""
    sharding = _sharding(tensor, mesh)
    if sharding is None:
        return slot
    from torch.distributed.tensor import DTensor

    # torch cannot pickle a DTensor whose part is not at the start of its storage, as a slot is.
    own = from_dlpack(slot)
    return DTensor.from_local(
        own, *sharding, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _sharding(tensor: Tensor, mesh: DeviceMesh | None) -> tuple[DeviceMesh, tuple[Any, ...]] | None:
    """Mesh and placements of the snapshots of a tensor, if they are in parts."""
    if hasattr(tensor, "to_local"):
        return tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    if mesh is None:
        return None
    from torch.distributed.tensor import Shard

    return mesh, (Shard(split_dim(tensor)),)


def check(entries: Iterable[tuple[str, Tensor, Mapping[str, Any]]], window: Window) -> None:
    """Refuse what does not fit these tensors or this window.

    Args:
        entries: for each tensor its name in a message, itself, and what the state dict says of it.
        window: to be filled.

    Raises:
        ValueError: with the first thing that does not fit.
    """
    k = window.k
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
        following = _next(entry, k)
        if not (isinstance(following, int) and 0 <= following < k):
            raise ValueError(f"{name}: {PREFIX}next must be from 0 to {k - 1}: {following!r}")
        for position in (f"{PREFIX}step", f"{PREFIX}newest"):
            if not isinstance(entry.get(position), int):
                raise ValueError(f"{name}: {position} must be a step: {entry.get(position)!r}")
        enabled = entry.get(f"{PREFIX}enabled", 1)
        if not (isinstance(enabled, int) and enabled in (0, 1)):
            raise ValueError(f"{name}: {PREFIX}enabled must be 0 or 1: {enabled!r}")
        if entry.get(f"{PREFIX}averaged") and f"{PREFIX}live" not in entry:
            raise ValueError(
                f"{name}: saved while averaged weights were in the model, and its live weights "
                "were left out in loading, as torch.distributed.checkpoint does: save outside "
                "averaged(), or read this one through torch.distributed.checkpoint.format_utils."
                "dcp_to_torch_save"
            )
        parts = [f"{PREFIX}{i}" for i in range(held)]
        for part in parts + [f"{PREFIX}live"] * (f"{PREFIX}live" in entry):
            snapshot = entry.get(part)
            if not isinstance(snapshot, Tensor):
                raise ValueError(f"{name}: snapshot {part} of {held} is missing")
            if snapshot.shape != tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)} and its saved snapshot {part} "
                    f"has {tuple(snapshot.shape)}: this state dict is of another model"
                )
            _check_sharding(name, snapshot, _sharding(tensor, window.mesh_of(tensor)))


def _check_sharding(
    name: str, snapshot: Tensor, own: tuple[DeviceMesh, tuple[Any, ...]] | None
) -> None:
    theirs = _sharding(snapshot, None)
    if theirs is None:
        return
    # Meshes that are equal may still be of another rank, where one rank's file was read by all.
    if theirs != own or theirs[0].get_coordinate() != own[0].get_coordinate():
        raise ValueError(
            f"{name}: this state dict holds {_described(theirs)}, and this LAWA {_described(own)}: "
            "get_optimizer_state_dict and torch.distributed.checkpoint, used on all ranks, save a "
            "split window for any number of them"
        )


def _described(sharding: tuple[DeviceMesh, tuple[Any, ...]] | None) -> str:
    if sharding is None:
        return "whole snapshots"
    mesh, placements = sharding
    return f"the part {mesh.get_coordinate()} of snapshots split as {placements} over {mesh}"


def _next(entry: Mapping[str, Any], k: int) -> Any:
    """The slot that the next snapshot goes to."""
    return entry.get(f"{PREFIX}next", entry[f"{PREFIX}held"] % k)


def fill(
    window: Window, interval: Interval, saved: Sequence[tuple[Tensor, Mapping[str, Any]]]
) -> None:
    """Replace the window's snapshots and the interval's position by checked, saved ones.

    What was saved without `lawa_enabled` leaves the interval switched on or off as it is.
    """
    window.clear()
    interval.step = max((entry.get(f"{PREFIX}step", 0) for _, entry in saved), default=0)
    interval.newest = max((entry.get(f"{PREFIX}newest", 0) for _, entry in saved), default=0)
    switches = [entry[f"{PREFIX}enabled"] for _, entry in saved if f"{PREFIX}enabled" in entry]
    interval.enabled = all(switches) if switches else interval.enabled
    entries = {id(tensor): entry for tensor, entry in saved if entry}
    alike: dict[tuple[int, int], list[Tensor]] = {}
    for tensor, entry in saved:
        if entry:
            position = entry[f"{PREFIX}held"], _next(entry, window.k)
            alike.setdefault(position, []).append(tensor)
    for (held, following), tensors in alike.items():
        for ring in window.allocate(tensors):
            ring.held, ring.next = held, following
            for i, slot in enumerate(ring.order()):
                snapshots = [
                    _own_value(entries[id(t)][f"{PREFIX}{i}"], t, ring.mesh) for t in ring.tensors
                ]
                torch._foreach_copy_(ring.slots[slot], snapshots)


def local_copies(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of saved values in the places, dtypes and shards of the tensors they are of."""
    copies = [torch.empty_like(local(tensor)) for tensor in tensors]
    pairs = zip(values, tensors, strict=True)
    torch._foreach_copy_(copies, [_own_value(value, tensor) for value, tensor in pairs])
    return copies


def _own_value(snapshot: Tensor, tensor: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """The part of a saved snapshot, itself whole or this rank's part, that this rank holds."""
    if hasattr(snapshot, "to_local"):
        return local(snapshot)
    if mesh is not None:
        return part_of(snapshot, mesh.size(), mesh.get_local_rank())
    if not hasattr(tensor, "to_local"):
        return snapshot
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    whole = snapshot.to(tensor.device)
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements).to_local()
