"""Attributes of a wrapper that are those of its parts."""

from __future__ import annotations

from typing import Any


def forwarded(part: str, name: str) -> Any:
    """Return a property that reads and sets an attribute of the part of that name."""

    def read(wrapper: Any) -> Any:
        return getattr(getattr(wrapper, part), name)

    def write(wrapper: Any, value: Any) -> None:
        setattr(getattr(wrapper, part), name, value)

    return property(read, write)
