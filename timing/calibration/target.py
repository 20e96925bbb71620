"""The target of a calibration: operations by name, and the function that sets them up."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Operation:
    """An operation with a cost: `run` it after every `every`-th pass through the loop."""

    run: Callable[[], object]
    every: int = 1


@dataclass(frozen=True)
class CalibrationTarget:
    """Operations to be measured: the function that `python -m timing calibrate` calls returns it.

    Attributes:
        workload: what the costs depend on: model, batch, shapes, dtype, optimizer, k.
        operations: by name, in the order in which they follow one another in a pass of the loop.
    """

    workload: Mapping[str, str | int | float]
    operations: Mapping[str, Operation]


def check_target(target: str) -> tuple[str, str]:
    """Return the parts of "MODULE:FUNCTION" or "FILE.py:FUNCTION"; nothing that it names is run.

    Raises:
        ValueError: it is not of this form, or there is no such file or package.
    """
    place, _, name = target.rpartition(":")
    is_module = all(part.isidentifier() for part in place.split("."))
    if not name or not (place.endswith(".py") or is_module):
        raise ValueError(f"{target!r} is neither MODULE:FUNCTION nor FILE.py:FUNCTION")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"there is no file {place}")
    elif not importlib.util.find_spec(place.partition(".")[0]):
        raise ValueError(f"there is no module {place}")
    return place, name


def load(target: str) -> Any:
    """Return the function that "MODULE:FUNCTION" or "FILE.py:FUNCTION" names.

    Raises:
        ValueError: it is not of this form, there is no such file or function, or the file has the
            name of a module in use.
        ImportError: there is no such module.
    """
    place, name = check_target(target)
    if place.endswith(".py"):
        path = Path(place)
        # As if the file were run: what lies beside it can be imported.
        sys.path.insert(0, str(path.resolve().parent))
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise ValueError(f"{place} has the name of a module that is in use: rename it")
    else:
        module = importlib.import_module(place)
    if not callable(found := getattr(module, name, None)):
        raise ValueError(f"{place} has no function {name!r}")
    return found
