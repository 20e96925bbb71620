"""Run a Python file of the user's own, and tell its errors in one line each."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from timing import tracebacks


def digest_of(path: Path, kind: type[ValueError]) -> str:
    """Return the SHA-256 of a file's text; `kind` is raised, in one line, if it cannot be read."""
    if path.exists() and not path.is_file():
        raise kind(f"{path} is no file")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise kind(f"{path}: {error.strerror}") from error


def run_file(path: Path) -> ModuleType:
    """Return a file as a module of its own, which is run anew."""
    # A digest in the name keeps two files called alike apart.
    module_name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle look a class's module up there.
    sys.modules[module_name] = module
    try:
        # Not by its loader, which takes another text of the same second and length for this one.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(module_name, None)
        raise
    return module


@contextmanager
def one_line_errors(path: Path, kind: type[ValueError]) -> Iterator[None]:
    """Tell any exception that a file's code raises as a `kind`, in one line that says where."""
    try:
        yield
    except (kind, KeyboardInterrupt):
        raise
    # Also what is no Exception: sys.exit(0) in a file would end the command as if all was well.
    except BaseException as error:
        raise kind(tracebacks.in_one_line(error, str(path))) from error
