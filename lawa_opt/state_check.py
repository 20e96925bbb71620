"""Refusals of state dicts that do not fit: all of them before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lawa_opt.sharding import local, split_dim
from lawa_opt.weights_by_step import UNKNOWN_STEP
from lawa_opt.window import Window

PREFIX = "lawa_"

# A step is a 64-bit number in files.
MAX_STEP = 2**63 - 1


def group_sizes(state_dict: dict[str, Any]) -> list[int]:
    """Return how many parameters each group of a state dict has.

    Raises:
        ValueError: its groups are no groups.
    """
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(state, Mapping):
        raise ValueError(f"its state must be a dict: {type(state).__name__}")
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        for group in groups
    ):
        raise ValueError("its param_groups must be a list of dicts, each with a list of params")
    return [len(group["params"]) for group in groups]


def check_numbering(pairs: Sequence[tuple[Any, Tensor]]) -> None:
    """Refuse numbers of parameters that do not stand for one tensor each.

    Raises:
        ValueError: naming the first.
    """
    tensors: dict[Any, Tensor] = {}
    numbers: dict[int, Any] = {}
    for number, tensor in pairs:
        if isinstance(number, bool) or not isinstance(number, int | str):
            raise ValueError(f"param_groups must name parameters by numbers: {number!r:.60}")
        if tensors.setdefault(number, tensor) is not tensor:
            raise ValueError(f"param_groups name parameter {number!r} in the place of two")
        if numbers.setdefault(id(tensor), number) != number:
            raise ValueError(f"param_groups name one parameter {numbers[id(tensor)]} and {number}")


def check_entries(entries: Sequence[tuple[str, Tensor, Any]], window: Window) -> None:
    """Refuse what does not fit these tensors or this window; whatever passes can be filled in.

    Args:
        entries: for each tensor its name in a message, itself, and what the state dict says of it.
        window: to be filled.

    Raises:
        ValueError: with the first thing that does not fit.
    """
    for name, tensor, entry in entries:
        if not isinstance(entry, Mapping):
            raise ValueError(f"{name}: must be a dict of its state, and is {_shown(entry)}")
        if entry:
            _check_numbers(name, entry)
            _check_snapshots(name, tensor, entry, window)
    _check_agreement(entries)


def _check_numbers(name: str, entry: Mapping[str, Any]) -> None:
    k: Any = entry.get(f"{PREFIX}k")
    if not _is_from(k, 1, MAX_STEP):
        raise ValueError(f"{name}: {PREFIX}k must be a number of snapshots: {_shown(k)}")
    held = entry.get(f"{PREFIX}held")
    if not _is_from(held, 0, k):
        raise ValueError(f"{name}: {PREFIX}held must be from 0 to {k}: {_shown(held)}")
    following = next_slot(entry, k)
    if not _is_from(following, 0, k - 1):
        raise ValueError(f"{name}: {PREFIX}next must be from 0 to {k - 1}: {_shown(following)}")
    for position in ("step", "newest"):
        value = entry.get(f"{PREFIX}{position}")
        if not _is_from(value, 0, MAX_STEP):
            raise ValueError(f"{name}: {PREFIX}{position} must be a step: {_shown(value)}")
    if entry[f"{PREFIX}newest"] > entry[f"{PREFIX}step"]:
        raise ValueError(
            f"{name}: {PREFIX}newest must not be after {PREFIX}step={entry[f'{PREFIX}step']}: "
            f"{entry[f'{PREFIX}newest']}"
        )
    steps = steps_in(entry)
    if any(not _is_from(step, UNKNOWN_STEP, entry[f"{PREFIX}newest"]) for step in steps):
        raise ValueError(
            f"{name}: snapshots must be of steps up to {PREFIX}newest="
            f"{entry[f'{PREFIX}newest']}: {', '.join(map(_shown, steps))}"
        )
    for switch in ("enabled", "averaged"):
        value = entry.get(f"{PREFIX}{switch}", 1 if switch == "enabled" else 0)
        if not (isinstance(value, int) and value in (0, 1)):
            raise ValueError(f"{name}: {PREFIX}{switch} must be 0 or 1: {_shown(value)}")


def _check_snapshots(name: str, tensor: Tensor, entry: Mapping[str, Any], window: Window) -> None:
    if entry.get(f"{PREFIX}averaged") and f"{PREFIX}live" not in entry:
        raise ValueError(
            f"{name}: saved while averaged weights were in the model, and its live weights "
            "were left out in loading, as torch.distributed.checkpoint does: save outside "
            "averaged(), or read this one through torch.distributed.checkpoint.format_utils."
            "dcp_to_torch_save"
        )
    held = entry[f"{PREFIX}held"]
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
        if snapshot.is_meta:
            raise ValueError(
                f"{name}: snapshot {part} is on meta and has no values: load the file with "
                'map_location="cpu"'
            )
        if snapshot.layout != torch.strided or snapshot.is_quantized:
            raise ValueError(
                f"{name}: snapshot {part} must be a plain dense tensor: it has layout "
                f"{snapshot.layout} and dtype {snapshot.dtype}"
            )
        if _family(snapshot) != _family(tensor):
            raise ValueError(
                f"{name} is of {tensor.dtype} and its saved snapshot {part} of {snapshot.dtype}"
            )
        _check_sharding(name, snapshot, sharding_of(tensor, window.mesh_of(tensor)))


def _check_agreement(entries: Sequence[tuple[str, Tensor, Mapping[str, Any]]]) -> None:
    """Refuse entries that are not of one moment of one training."""
    filled = [(name, entry) for name, _, entry in entries if entry]
    if not filled:
        return
    first, reference = filled[0]
    for name, tensor, entry in entries:
        # Of a parameter that has no elements on a rank, FSDP may drop the whole entry.
        if not entry and local(tensor).numel():
            raise ValueError(f"{name} has no snapshots in this state dict, and {first} has some")
    for name, entry in filled:
        for key in ("k", "step", "newest", "enabled", "averaged"):
            mine, theirs = entry.get(f"{PREFIX}{key}"), reference.get(f"{PREFIX}{key}")
            if mine != theirs:
                raise ValueError(
                    f"{name} has {PREFIX}{key}={mine} and {first} has {theirs}: they are not of "
                    "one moment of one training"
                )
        if (f"{PREFIX}live" in entry) != (f"{PREFIX}live" in reference):
            raise ValueError(f"of {name} and {first} only one has live weights ({PREFIX}live)")


def _is_from(value: object, low: int, high: int) -> bool:
    """Return whether this is a whole number in a range; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _family(tensor: Tensor) -> str:
    """Return what numbers a tensor is of: a copy to another family loses what they are."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else str(tensor.dtype)


def _shown(value: object) -> str:
    """Return a short text of a value of any kind, which a damaged file may make large."""
    return type(value).__name__ if isinstance(value, Tensor) else f"{value!r:.60}"


def _check_sharding(
    name: str, snapshot: Tensor, own: tuple[DeviceMesh, tuple[Any, ...]] | None
) -> None:
    theirs = sharding_of(snapshot, None)
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


def sharding_of(
    tensor: Tensor, mesh: DeviceMesh | None
) -> tuple[DeviceMesh, tuple[Any, ...]] | None:
    """Return mesh and placements of the snapshots of a tensor, if they are in parts."""
    if hasattr(tensor, "to_local"):
        return tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    if mesh is None:
        return None
    from torch.distributed.tensor import Shard

    return mesh, (Shard(split_dim(tensor)),)


def steps_in(entry: Mapping[str, Any]) -> list[Any]:
    """Return the steps of the snapshots held, oldest first."""
    held = entry[f"{PREFIX}held"]
    return [entry.get(f"{PREFIX}{i}_step", UNKNOWN_STEP) for i in range(held)]


def next_slot(entry: Mapping[str, Any], k: int) -> Any:
    """Return the slot that the next snapshot goes to."""
    return entry.get(f"{PREFIX}next", entry[f"{PREFIX}held"] % k)
