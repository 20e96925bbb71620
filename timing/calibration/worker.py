"""Calibrate in one fresh process, which `timing.calibration.processes` starts and reads."""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from timing.calibration import energy_meter
from timing.calibration.disturbance import MAX_DISTURBED_SHARE
from timing.calibration.energy import EnergyShare
from timing.calibration.environment import Machine, Software, this_machine, this_software
from timing.calibration.measure import calibrate
from timing.calibration.profile import Signature, check_signature
from timing.calibration.row import Calibration
from timing.calibration.target import CalibrationTarget, load
from timing.gpu.heat import HeatWatch
from timing.tracebacks import in_one_line, place_of, write_down


class WorkerRequest(BaseModel):
    """A request to a fresh process.

    `seconds`, `known_probe` and `energy` go to `timing.calibrate`, what is to be cooled to
    `timing.gpu.heat`.
    """

    # Of arguments, since JSON as such has no infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    target: str
    arguments: dict[str, Any]
    seconds: float
    threads: int
    known_probe: float | None = None
    energy: EnergyShare | None = None
    cool_to: dict[str, float] = {}
    cool_seconds: float = 0.0


class WorkerResult(BaseModel):
    """The answer of a fresh process: what it measured and ran on, and what else it has to say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    software: Software
    workload: Signature
    every: dict[str, int]
    calibration: Calibration
    said: tuple[str, ...] = ()


def measure(request: WorkerRequest) -> WorkerResult:
    """Measure what is requested, in this process.

    Raises:
        TypeError: the function takes other arguments, does not return a `CalibrationTarget`, or its
            signature holds something else than text and numbers.
        ValueError: a number in it is too large.
    """
    said: list[str] = []
    heat = HeatWatch(request.cool_to, request.cool_seconds, said.append)
    torch.set_num_threads(request.threads)
    target = load(request.target)(**request.arguments)
    if not isinstance(target, CalibrationTarget):
        raise TypeError(
            f"{request.target} must return a timing.CalibrationTarget, not {type(target).__name__}"
        )
    for key, value in target.workload.items():
        if not isinstance(value, str | int | float):
            raise TypeError(
                f"the workload of {request.target} has {key}={value!r}: a signature holds text and "
                "numbers alone"
            )
    check_signature(target.workload)
    # One attempt: what does not add up is for the parent to judge, beside the other processes.
    calibration = calibrate(
        target.operations,
        request.seconds,
        math.inf,
        known_probe=request.known_probe,
        energy=request.energy,
        say=said.append,
    )
    throttled = calibration.noise.throttled_share or 0.0
    if 0 < throttled <= MAX_DISTURBED_SHARE:
        said.append(f"left out {throttled:.0%} of the passes, in which a GPU was throttled")
    found = heat.end(energy_meter.names_of(energy_meter.uuids_in_use()))
    return WorkerResult(
        machine=this_machine(),
        software=this_software(),
        workload=dict(target.workload),
        every={name: operation.every for name, operation in target.operations.items()},
        calibration=calibration.model_copy(update={"heat": found}),
        said=tuple(said),
    )


def exit_when_parent_dies() -> None:
    """Exit at once when standard input ends: then the process that started this one is gone."""

    def watch() -> None:
        # Not through sys.stdin, whose lock this thread would have when the interpreter ends.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Read the request from the file named first, and write the result to the one named second."""
    exit_when_parent_dies()
    request_path, result_path = map(Path, sys.argv[1:])
    request = WorkerRequest.model_validate_json(request_path.read_bytes())
    try:
        result = measure(request)
    # Whatever it is, the starter quotes its last line. What a target may get wrong has no traceback
    # worth reading, nor has what a user's own file raises.
    except BaseException as error:
        said = in_one_line(error)
        if not place_of(error) and not isinstance(error, ValueError | TypeError | ImportError):
            said = f"{said}; {write_down(error)}"
        print(said, file=sys.stderr)
        sys.exit(1)
    result_path.write_bytes(result.model_dump_json().encode())
