"""Optimizers of two steps an update, such as SAM: `first_step()` moves away, `second_step()` on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def two_steps_of(lawa: Any, name: str) -> Callable[..., Any]:
    """Return what a LAWA has as `first_step` and `second_step` where its optimizer has them.

    The update is done after the second, which is counted and collected as `step()` is. Arguments
    are passed on to both.

    Raises:
        AttributeError: it is something else that is asked for, or the optimizer has it not.
    """
    base = vars(lawa).get("base")
    if name not in ("first_step", "second_step") or not hasattr(base, name):
        raise AttributeError(f"{type(lawa).__name__!r} object has no attribute {name!r}")

    def take(*args: Any, **kwargs: Any) -> Any:
        lawa.swaps.refuse_any(f"{name}()")
        result = getattr(base, name)(*args, **kwargs)
        lawa.exchange.is_between_steps = name == "first_step"
        if name == "second_step":
            if lawa.schedule.step():
                lawa.collect()
            if lawa.schedule.is_restart() and lawa.num_snapshots:
                lawa.restart_from_average()
            lawa.exchange.stamp()
        return result

    return take
