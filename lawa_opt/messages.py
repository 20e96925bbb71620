"""Warnings that point to the user's own line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


class ArgumentError(ValueError):
    """An argument that would be wrong for any snapshots or files."""


INSIDE = ("lawa_opt", "torch", "contextlib")


def warn(text: str) -> None:
    """Warn, with the line outside of this package and torch that the call came from."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"LAWA: {text}", stacklevel=level)


def is_called_from(*packages: str) -> bool:
    """Return whether a module of these packages is among those that led to this call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if any(name == package or name.startswith(f"{package}.") for package in packages):
            return True
        frame = frame.f_back
    return False


def few(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
