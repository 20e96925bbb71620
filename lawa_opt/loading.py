"""Loading a state dict: all of it, or nothing and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lawa_opt.average import Average
from lawa_opt.schedule import CollectSchedule
from lawa_opt.several import parts_of
from lawa_opt.state_check import check_entries
from lawa_opt.state_dict import detach, local_copies, restored_rings, set_schedule
from lawa_opt.swap import Swap
from lawa_opt.window import Window


def load(state_dict: dict[str, Any], average: Average) -> Swap | None:
    """Load a state dict into optimizer, window and schedule.

    Args:
        state_dict: its entries are replaced; what is in them is not written to.
        average: whose parts they are.

    Returns:
        The swap that was under way when it was saved, if one was.

    Raises:
        ValueError: it does not fit; nothing has been changed.
    """
    base, window, schedule = average.base, average.window, average.schedule
    named = detach(state_dict, base.param_groups, average.buffers.now())
    check_entries(named, window)
    entries = [(tensor, entry) for _, tensor, entry in named]
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
    return swap


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
