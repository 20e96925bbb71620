"""A Python file of the user's own: the function it defines, and its errors in one line each."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def digest_of(path: Path, kind: type[ValueError]) -> str:
    """The SHA-256 of a file's text; `kind` is raised, in one line, if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise kind(f"{path}: {error.strerror}") from error


def function_of(
    path: Path, name: str, result: str, kind: type[ValueError]
) -> Callable[..., object]:
    """The function of this name in a file, which is run as a module of its own.

    Args:
        path: the file.
        name: of the function.
        result: what it must return, for the error where there is no such function.
        kind: what is raised then.
    """
    # A digest in the name keeps two files called alike apart.
    module_name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle look a class's module up there.
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise kind(f"{path} defines no function `{name}`, which must return a {result}")
    return function  # type: ignore[no-any-return]


@contextmanager
def in_one_line(path: Path, kind: type[ValueError]) -> Iterator[None]:
    """Tell any exception that a file's code raises as a `kind`, in one line that says where."""
    try:
        yield
    except kind:
        raise
    except SyntaxError as error:
        raise kind(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
        where = f", line {lines[-1]}" if lines else ""
        said = " ".join(str(error).split())
        raise kind(f"{path}{where}: {type(error).__name__}: {said}") from error
