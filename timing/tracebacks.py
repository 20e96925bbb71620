"""Exceptions in one line, with the place in whose code they were raised."""

from __future__ import annotations

import os
import sysconfig
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from timing.secrets import hide

# Of a message that quotes what it was given, beginning and end say most.
LONGEST_BEGINNING, LONGEST_END = 1500, 500

_ROOT = Path(__file__).resolve().parent.parent
_NOT_A_USERS = (
    *(f"{_ROOT / package}{os.sep}" for package in ("lawa_opt", "timing", "baselines")),
    sysconfig.get_path("stdlib") + os.sep,
    # Code that was made at run time.
    "<",
)
_LIBRARIES = {"site-packages", "dist-packages"}


def message_of(error: BaseException) -> str:
    """Return an exception's message in one line, without the middle of one that is very long."""
    try:
        said = hide(" ".join(str(error).split()))
    # A class of a user's own may fail at this too.
    except Exception:
        return "(its message cannot be read)"
    if len(said) <= LONGEST_BEGINNING + LONGEST_END:
        return said
    return f"{said[:LONGEST_BEGINNING]} … {said[-LONGEST_END:]}"


def place_of(error: BaseException) -> str:
    """Return the innermost line of a user's own code that an exception passed, as "FILE, line 3".

    A user's own is what is neither part of this project nor of Python nor installed as a library.
    Empty if there is no such line.
    """
    # Of code that cannot be compiled no line is run.
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        where = "" if error.lineno is None else f", line {error.lineno}"
        return _shown(error.filename) + where
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if _is_users(frame.f_code.co_filename):
            return f"{_shown(frame.f_code.co_filename)}, line {line}"
    return ""


def place_of_function(function: Callable[..., object]) -> str:
    """Return where a user's own function begins, as "FILE, line 3"; empty if it is no user's."""
    code = getattr(function, "__code__", None)
    if code is None or not _is_users(code.co_filename):
        return ""
    return f"{_shown(code.co_filename)}, line {code.co_firstlineno}"


def in_one_line(error: BaseException, place: str = "") -> str:
    """Return an exception in one line: where in a user's own code, of which kind, its message.

    Its notes, as of what was done when it was raised, stand behind.

    Args:
        error: that was caught.
        place: what is named where no line of a user's own code is.
    """
    place = place_of(error) or place
    if isinstance(error, SystemExit):
        said = "it ends the process (sys.exit): raise an error that says why instead"
    elif isinstance(error, SyntaxError):
        said = error.msg
    else:
        said = ": ".join(filter(None, (type(error).__name__, message_of(error))))
    said += "".join(f" ({' '.join(note.split())})" for note in getattr(error, "__notes__", ()))
    return f"{place}: {said}" if place else said


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that there is too little memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate" in message_of(error)


def write_down(error: BaseException, folder: Path | None = None) -> str:
    """Write a traceback to a file that others cannot read, and return where it is.

    Args:
        error: that was caught.
        folder: where the file is written; without one, among the temporary files.
    """
    text = hide("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            prefix="traceback-" if folder else "lawa-opt-",
            suffix=".txt",
            dir=folder,
            delete=False,
        ) as file:
            file.write(text)
    except OSError as failed:
        return f"its traceback could not be written: {failed.strerror}"
    return f"its traceback is in {file.name}"


def _is_users(name: str) -> bool:
    if name.startswith(_NOT_A_USERS):
        return False
    path = os.path.realpath(name)
    return not path.startswith(_NOT_A_USERS) and _LIBRARIES.isdisjoint(Path(path).parts)


def _shown(name: str) -> str:
    """Return a path as short as it can be named from here."""
    try:
        return str(Path(name).relative_to(Path.cwd()))
    # It lies elsewhere, or the working folder is gone.
    except (ValueError, OSError):
        return name
