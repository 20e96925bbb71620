"""The window in an optimizer's state dict.

Each parameter's entry carries its snapshots (`lawa_0`, the oldest held, and so on) and plain ints.
torch.distributed.checkpoint keeps nothing else of an optimizer, so nothing else is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.utils.dlpack import from_dlpack

from lawa_opt.average import Average
from lawa_opt.ring import Ring
from lawa_opt.schedule import CollectSchedule
from lawa_opt.sharding import local, part_of
from lawa_opt.state_check import (
    PREFIX,
    check_numbering,
    group_sizes,
    next_slot,
    sharding_of,
    steps_in,
)
from lawa_opt.swap import Swap
from lawa_opt.swaps import live_values
from lawa_opt.window import Window


def saved(average: Average, swap: Swap | None) -> dict[str, Any]:
    """Return an optimizer's state dict with the window in it.

    Args:
        average: of the optimizer.
        swap: the live weights, where averaged ones are in the model and so in a checkpoint of it.

    Raises:
        RuntimeError: averaged weights are in the model and it is in parts.
    """
    window, tensors = average.window, average.tensors()
    if swap is not None and any(map(window.is_sharded, tensors)):
        raise RuntimeError(
            "state_dict() of a sharded model or window while averaged weights are in the model: "
            "its checkpoint could not give the live weights back, so call train(), or leave the "
            "`averaged()` block, on all ranks first (under Transformers' Trainer, which saves "
            "right after it evaluates, call it in a callback's on_evaluate)"
        )
    average.warn_of_lightning()
    if average.schedule.steps:
        window.allocate(tensors)
    state_dict = dict(average.base.state_dict())
    entries = _window_state(window, average.schedule, swap)
    attach(state_dict, entries, average.base.param_groups, average.buffers.now())
    return state_dict


def _window_state(
    window: Window, schedule: CollectSchedule, swap: Swap | None
) -> dict[int, dict[str, Any]]:
    """Return what a state dict says of each tensor in the window, by the tensor's id.

    Args:
        window: its snapshots are not copied.
        schedule: its position, and whether it is switched on.
        swap: the live weights, where averaged ones are in the model and so in a checkpoint of it.
    """
    entries: dict[int, dict[str, Any]] = {}
    for ring in window.rings:
        ring.storage.synchronize()
        held = ring.newest_slots()
        unused = [index for index in range(ring.k) if index not in held]
        for place, tensor in enumerate(ring.tensors):
            snapshots = {
                f"{PREFIX}{i}": _as_sharded(ring.slots[index][place], tensor, ring.mesh)
                for i, index in enumerate(held + unused)
            }
            entries[id(tensor)] = {
                **snapshots,
                **{f"{PREFIX}{i}_step": ring.steps[j] for i, j in enumerate(held + unused)},
                f"{PREFIX}k": ring.k,
                f"{PREFIX}held": ring.num_snapshots,
                # The mean adds up slot by slot, and so depends on them in its last bit.
                f"{PREFIX}next": ring.write_index,
                f"{PREFIX}step": schedule.steps,
                f"{PREFIX}newest": schedule.last_collect,
                f"{PREFIX}enabled": int(schedule.enabled),
                f"{PREFIX}averaged": int(swap is not None),
            }
    if swap is not None:
        for tensor, live in zip(swap.tensors, live_values(swap), strict=True):
            if id(tensor) in entries:
                entries[id(tensor)][f"{PREFIX}live"] = live
    return entries


# The parameter groups of an optimizer.
Groups = list[dict[str, Any]]


def attach(
    state_dict: dict[str, Any],
    entries: Mapping[int, dict[str, Any]],
    groups: Groups,
    buffers: Sequence[Tensor],
) -> None:
    """Add the window to the state dict of an optimizer with these groups.

    Args:
        state_dict: its `state` is replaced, and not written to.
        entries: by the ids of parameters and buffers.
        groups: of the optimizer.
        buffers: in their order.
    """
    if has_torch_form(state_dict):
        state = dict(state_dict["state"])
        for index, parameter in _numbered(state_dict["param_groups"], groups):
            if id(parameter) in entries:
                state[index] = {**state.get(index, {}), **entries[id(parameter)]}
        state_dict["state"] = state
    else:
        parameters = [p for group in groups for p in group["params"]]
        state_dict[f"{PREFIX}parameters"] = [entries.get(id(p), {}) for p in parameters]
    if buffers:
        state_dict[f"{PREFIX}buffers"] = [entries.get(id(buffer), {}) for buffer in buffers]


def detach(
    state_dict: dict[str, Any], groups: Groups, buffers: Sequence[Tensor]
) -> list[tuple[str, Tensor, Any]]:
    """Take the window out of a state dict, and return what that says of each tensor.

    Args:
        state_dict: its `state` is replaced, and not written to.
        groups: of the optimizer.
        buffers: in their order.

    Returns:
        For each tensor its name in a message, itself, and its entry, not yet checked.

    Raises:
        ValueError: it is of other groups, or of no form that a state dict has.
    """
    lists = {name: state_dict.pop(f"{PREFIX}{name}s", []) for name in ("parameter", "buffer")}
    own = {"parameter": [p for group in groups for p in group["params"]], "buffer": buffers}
    named: list[tuple[str, Tensor, Any]] = []
    if has_torch_form(state_dict):
        sizes, own_sizes = group_sizes(state_dict), [len(group["params"]) for group in groups]
        if sizes != own_sizes:
            raise ValueError(
                f"this state dict has parameter groups of {sizes} parameters and this optimizer "
                f"of {own_sizes}: it is of another model, or the groups were made otherwise"
            )
        pairs = list(_numbered(state_dict["param_groups"], groups))
        check_numbering(pairs)
        plain, windows = _split_state(state_dict["state"], {number for number, _ in pairs})
        named += [(f"parameter {i}", tensor, windows.get(i, {})) for i, tensor in pairs]
        state_dict["state"] = plain
    for name, entries in lists.items():
        if not isinstance(entries, list | tuple):
            raise ValueError(f"{PREFIX}{name}s must be a list: {type(entries).__name__}")
        if len(entries) not in (0, len(own[name])):
            raise ValueError(
                f"this state dict holds {len(entries)} {name}s and this LAWA {len(own[name])}"
            )
        for index, (tensor, entry) in enumerate(zip(own[name], entries, strict=False)):
            named.append((f"{name} {index}", tensor, entry))
    return named


def is_dcp_state_init(optimizer: Optimizer, kwargs: dict[str, Any]) -> bool:
    """Return whether this is torch.distributed.checkpoint's way of making an optimizer's state.

    It calls step(closure=None) with rates and gradients of exactly zero, which is no step of
    training. A warm-up may start at a rate of zero, but has gradients.
    """
    if kwargs != {"closure": None} or optimizer.state:
        return False
    return all(
        float(group.get("lr", 0.0)) == 0.0
        and all(p.grad is None or not local(p.grad).any() for p in group["params"])
        for group in optimizer.param_groups
    )


def has_torch_form(state_dict: Mapping[str, Any]) -> bool:
    """Return whether a state dict is as torch makes it; other packages may have their own form."""
    return "state" in state_dict and "param_groups" in state_dict


def _numbered(numbers: Groups, groups: Groups) -> Iterator[tuple[Any, Tensor]]:
    """Yield each parameter beside its number in the groups of a state dict."""
    for group, own in zip(numbers, groups, strict=True):
        yield from zip(group["params"], own["params"], strict=True)


def _split_state(
    state: Mapping[Any, Any], numbers: set[Any]
) -> tuple[dict[Any, Any], dict[Any, dict[str, Any]]]:
    """Return a saved state without the window, and the window's part of it.

    Raises:
        ValueError: what it has of a parameter is no dict, or there is a window of no parameter.
    """
    plain: dict[Any, Any] = {}
    windows: dict[Any, dict[str, Any]] = {}
    for index, entry in state.items():
        if not isinstance(entry, Mapping):
            if index in numbers:
                raise ValueError(f"the state of parameter {index} must be a dict: {entry!r:.60}")
            plain[index] = entry  # of the optimizer as a whole
            continue
        mine = {name: entry[name] for name in entry if str(name).startswith(PREFIX)}
        if mine and index not in numbers:
            raise ValueError(f"there are snapshots of parameter {index!r:.60}, of no group")
        windows[index] = mine
        if not mine:
            plain[index] = entry
        elif len(mine) < len(entry):
            plain[index] = {name: entry[name] for name in entry if name not in mine}
    return plain, windows


def _as_sharded(slot: Tensor, tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Return the slot as a DTensor where it is a part, so that a checkpoint can be resharded."""
    sharding = sharding_of(tensor, mesh)
    if sharding is None:
        return slot
    from torch.distributed.tensor import DTensor

    # torch cannot pickle a DTensor whose part is not at the start of its storage, as a slot is.
    shard = from_dlpack(slot)
    return DTensor.from_local(
        shard, *sharding, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def restored_rings(window: Window, saved: Sequence[tuple[Tensor, Mapping[str, Any]]]) -> list[Ring]:
    """Return rings with checked, saved snapshots, as the window would make them."""
    made = window.like()
    entries = {id(tensor): entry for tensor, entry in saved if entry}
    alike: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}
    for tensor, entry in saved:
        if entry:
            position = next_slot(entry, made.k), tuple(steps_in(entry))
            alike.setdefault(position, []).append(tensor)
    for (following, steps), tensors in alike.items():
        for ring in made.allocate(tensors):
            ring.num_snapshots, ring.write_index = len(steps), following
            for i, slot in enumerate(ring.newest_slots()):
                ring.steps[slot] = steps[i]
                snapshots = [
                    _local_value(entries[id(t)][f"{PREFIX}{i}"], t, ring.mesh) for t in ring.tensors
                ]
                torch._foreach_copy_(ring.slots[slot], snapshots)
    return made.rings


def set_schedule(schedule: CollectSchedule, saved: Sequence[Mapping[str, Any]]) -> None:
    """Set the position of a schedule as checked entries say, from the beginning if none says.

    What was saved without `lawa_enabled` leaves the schedule switched on or off as it is.
    """
    entry = next((entry for entry in saved if entry), {})
    schedule.steps = entry.get(f"{PREFIX}step", 0)
    schedule.last_collect = entry.get(f"{PREFIX}newest", 0)
    schedule.enabled = bool(entry.get(f"{PREFIX}enabled", schedule.enabled))


def local_copies(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of saved values in the places, dtypes and shards of the tensors they are of."""
    copies = [torch.empty_like(local(tensor)) for tensor in tensors]
    pairs = zip(values, tensors, strict=True)
    torch._foreach_copy_(copies, [_local_value(value, tensor) for value, tensor in pairs])
    return copies


def _local_value(snapshot: Tensor, tensor: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """Return this rank's part of a saved snapshot, which is whole or that part."""
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
