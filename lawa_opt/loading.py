"""The wrapped optimizer's part of loading a state dict, and the way back when it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lawa_opt.schedule import CollectSchedule
from lawa_opt.window import Window


def undo_of(base: Optimizer, window: Window, schedule: CollectSchedule) -> Callable[[], None]:
    """Return what brings back optimizer, window and schedule as they are now."""
    state = dict(vars(base))
    groups = [(group, dict(group)) for group in base.param_groups]
    rings, position = list(window.rings), dict(vars(schedule))

    def undo() -> None:
        vars(base).update(state)
        for group, before in groups:
            group.clear()
            group.update(before)
        window.replace(rings)
        vars(schedule).update(position)

    return undo


def load_base(base: Optimizer, state_dict: dict[str, Any]) -> None:
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
