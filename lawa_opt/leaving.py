"""A checkpoint as it would be without LAWA, for a training that goes on without it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from lawa_opt.state_check import PREFIX

# What `state_dict.py` writes.
OURS = re.compile(
    rf"{PREFIX}(\d+(_step)?|k|held|next|step|newest|enabled|averaged|live|parameters|buffers)"
)


def leave(checkpoint: Any) -> Any:
    """Return a checkpoint without the window: the wrapped optimizer alone can load it.

    Args:
        checkpoint: an optimizer's state dict, or dicts and lists that hold some, such as what a
            training saves. It is not changed; what needs no change is the same object.

    Raises:
        ValueError: no window is in it; or it was saved while averaged weights were in the model,
            so that the model beside it has not the weights that were trained.
    """
    left, found = _without(checkpoint)
    if not found:
        raise ValueError("there is no window of LAWA in it, so there is nothing to leave")
    return left


def _without(held: Any) -> tuple[Any, bool]:
    """Return what is held without windows, and whether there was one."""
    if isinstance(held, Mapping):
        ours = _ours(held)
        if held.get(f"{PREFIX}averaged") or f"{PREFIX}live" in ours:
            raise ValueError(
                "it was saved while averaged weights were in the model, so the weights beside it "
                "are the average: load it into a LAWA, call train(), and save the model and "
                "opt.base.state_dict()"
            )
        pairs = [(name, *_without(value)) for name, value in held.items() if name not in ours]
        if not ours and not any(found for *_, found in pairs):
            return held, False
        left: Any = copy.copy(held)
        for name in ours:
            del left[name]
        for name, value, found in pairs:
            if found and isinstance(value, Mapping) and not value and _ours(held[name]):
                del left[name]  # of a parameter there was the window alone
            elif found:
                left[name] = value
        return left, True
    if isinstance(held, list | tuple) and type(held) in (list, tuple):
        results = [_without(value) for value in held]
        if any(found for _, found in results):
            return type(held)(value for value, _ in results), True
    return held, False


def _ours(held: Mapping[Any, Any]) -> list[str]:
    return [name for name in held if isinstance(name, str) and OURS.fullmatch(name)]
