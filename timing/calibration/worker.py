"""Calibrate in one fresh process, which `timing.calibration.processes` starts and reads."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from timing.calibration.machine import Machine, this_machine
from timing.calibration.measure import Calibratable, calibrate
from timing.calibration.profile import Signature, check_signature
from timing.calibration.row import Calibration
from timing.calibration.software import Software, this_software
from timing.tracebacks import in_one_line, place_of, write_down


class Order(BaseModel):
    """What a fresh process is to measure; `seconds` and `known_probe` go to `timing.calibrate`."""

    # Of arguments, since JSON as such has no infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    target: str
    arguments: dict[str, Any]
    seconds: float
    threads: int
    known_probe: float | None = None


class Result(BaseModel):
    """What a fresh process measured, and what it ran on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    software: Software
    workload: Signature
    every: dict[str, int]
    calibration: Calibration


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
    """The function that "MODULE:FUNCTION" or "FILE.py:FUNCTION" names.

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


def measure(order: Order) -> Result:
    """Carry out an order in this process.

    Raises:
        TypeError: the function takes other arguments, does not return a `Calibratable`, or its
            signature holds something else than text and numbers.
        ValueError: a number in it is too large.
    """
    torch.set_num_threads(order.threads)
    calibratable = load(order.target)(**order.arguments)
    if not isinstance(calibratable, Calibratable):
        raise TypeError(
            f"{order.target} must return a timing.Calibratable, not {type(calibratable).__name__}"
        )
    for key, value in calibratable.workload.items():
        if not isinstance(value, str | int | float):
            raise TypeError(
                f"the workload of {order.target} has {key}={value!r}: a signature holds text and "
                "numbers alone"
            )
    check_signature(calibratable.workload)
    # One attempt: what does not add up is for the parent to judge, beside the other processes.
    calibration = calibrate(
        calibratable.operations, order.seconds, math.inf, known_probe=order.known_probe
    )
    return Result(
        machine=this_machine(),
        software=this_software(),
        workload=dict(calibratable.workload),
        every={name: operation.every for name, operation in calibratable.operations.items()},
        calibration=calibration,
    )


def end_with_the_starter() -> None:
    """End at once when standard input does: then the process that started this one is gone."""

    def watch() -> None:
        # Not through sys.stdin, whose lock this thread would have when the interpreter ends.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Read the order from the file named first, and write the result to the one named second."""
    end_with_the_starter()
    order_path, result_path = map(Path, sys.argv[1:])
    order = Order.model_validate_json(order_path.read_bytes())
    try:
        result = measure(order)
    # Whatever it is, the starter quotes its last line. What a target may get wrong has no traceback
    # worth reading, nor has what a user's own file raises.
    except BaseException as error:
        said = in_one_line(error)
        if not place_of(error) and not isinstance(error, ValueError | TypeError | ImportError):
            said = f"{said}; {write_down(error)}"
        print(said, file=sys.stderr)
        sys.exit(1)
    result_path.write_bytes(result.model_dump_json().encode())
