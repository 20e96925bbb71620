"""Loading a state dict: all of it, or nothing and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lawa_opt.average import Average
from lawa_opt.messages import warn
from lawa_opt.ring import DTYPES
from lawa_opt.schedule import CollectSchedule
from lawa_opt.several import parts_of
from lawa_opt.state_check import PREFIX, check_entries, steps_in
from lawa_opt.state_dict import detach, local_copies, restored_rings, set_schedule
from lawa_opt.swap import Swap
from lawa_opt.window import Window


def refuse_unloadable(state_dict: Any, average: Average) -> None:
    """Refuse what is no state dict, and buffers that were replaced.

    Raises:
        ValueError: it is no dict.
        RuntimeError: buffers were given as tensors and the model has others by now.
    """
    average.tensors()
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a state dict is a dict: got {type(state_dict).__name__}")


def load(state_dict: dict[str, Any], average: Average) -> Swap | None:
    """Load a state dict into optimizer, window and schedule.

    Args:
        state_dict: its entries are replaced; what is in them is not written to.
        average: whose parts they are.

    What is left out, as of a window of another `k`, is told in a warning when all is loaded.

    Returns:
        The swap that was under way when it was saved, if one was.

    Raises:
        ValueError: it does not fit; nothing has been changed.
    """
    base, window, schedule = average.base, average.window, average.schedule
    notes = _leave_out_other_buffers(state_dict, average.buffers.now())
    named = detach(state_dict, base.param_groups, average.buffers.now())
    check_entries(named, window)
    notes += _losses(named, window)
    entries = [(tensor, _newest(entry, window.k)) for _, tensor, entry in named]
    rings = restored_rings(window, entries)
    live = [(t, entry["lawa_live"]) for t, entry in entries if "lawa_live" in entry]
    swap = None
    if live:
        tensors, weights = map(list, zip(*live, strict=True))
        swap = Swap(tensors, average.buffers, local_copies(weights, tensors))
    undo = _undo_of(base, window, schedule)
    try:
        _load_base(base, state_dict)
        window.replace(rings)
        set_schedule(schedule, [entry for _, entry in entries])
    except BaseException:
        undo()
        raise
    for note in notes:
        warn(f"load_state_dict(): {note}")
    return swap


def _leave_out_other_buffers(state_dict: dict[str, Any], buffers: Sequence[Tensor]) -> list[str]:
    """Take the snapshots of other buffers than a LAWA has out of a state dict, and say so.

    Raises:
        ValueError: their live values are among them.
    """
    saved = state_dict.get(f"{PREFIX}buffers", ())
    if not isinstance(saved, list | tuple) or len(saved) in (0, len(buffers)):
        return []
    counts = f"it holds snapshots of {len(saved)} buffers and this LAWA has {len(buffers)}"
    if any(isinstance(entry, Mapping) and f"{PREFIX}live" in entry for entry in saved):
        raise ValueError(
            f"{counts}, and was saved while averaged weights were in the model: give LAWA the same "
            "`buffers`, or their live values would be lost"
        )
    del state_dict[f"{PREFIX}buffers"]
    return [f"{counts}: they are left out, and buffers are live until the next snapshot"]


def _losses(named: Sequence[tuple[str, Tensor, Any]], window: Window) -> list[str]:
    """Return what of checked, saved snapshots this window does not hold as it is."""
    notes = []
    entries = [(tensor, entry) for _, tensor, entry in named if entry]
    first: Mapping[str, Any] = next((entry for _, entry in entries), {})
    held, saved_k = first.get(f"{PREFIX}held", 0), first.get(f"{PREFIX}k", window.k)
    if held and saved_k != window.k:
        kept = min(held, window.k)
        which = f"all {held}" if kept == held else f"the {kept} newest of {held}"
        notes.append(
            f"its window is of k={saved_k} and this LAWA of k={window.k}: {which} snapshots stay"
        )
    for tensor, entry in entries:
        saved, kept_in = (entry.get(f"{PREFIX}0", tensor).dtype, window.dtype or tensor.dtype)
        if tensor.dtype in DTYPES and torch.promote_types(saved, kept_in) != kept_in:
            notes.append(f"snapshots in {saved} are rounded to this window's {kept_in}")
            break
    return notes


def _newest(entry: Mapping[str, Any], k: int) -> Mapping[str, Any]:
    """Return what is saved of a tensor as a window of k has it, with the newest snapshots."""
    if not entry or entry[f"{PREFIX}k"] == k:
        return entry
    held = min(entry[f"{PREFIX}held"], k)
    first = entry[f"{PREFIX}held"] - held
    steps = steps_in(entry)
    return {
        **{name: value for name, value in entry.items() if not name[len(PREFIX) :][:1].isdigit()},
        **{f"{PREFIX}{i}": entry[f"{PREFIX}{first + i}"] for i in range(held)},
        **{f"{PREFIX}{i}_step": steps[first + i] for i in range(held)},
        f"{PREFIX}k": k,
        f"{PREFIX}held": held,
        f"{PREFIX}next": held % k,
    }


def _undo_of(base: Optimizer, window: Window, schedule: CollectSchedule) -> Callable[[], None]:
    """Return what brings back optimizer, window and schedule as they are now."""
    states = [(each, dict(vars(each))) for each in parts_of(base)]
    groups = [(group, dict(group)) for group in base.param_groups]
    rings, position = list(window.rings), dict(vars(schedule))

    def undo() -> None:
        for each, state in states:
            vars(each).update(state)
        for group, before in groups:
            group.clear()
            group.update(before)
        window.replace(rings)
        vars(schedule).update(position)

    return undo


def _load_base(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load the wrapped optimizer's part.

    Raises:
        ValueError: it is refused.
    """
    try:
        base.load_state_dict(state_dict)
    except Exception as error:
        raise ValueError(
            f"{type(base).__name__} refuses its part of this state dict: "
            f"{type(error).__name__}: {error}"
        ) from error
