"""Calibrate in several fresh processes: the uncertainty of a cost lies between them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timing.calibration.energy import SHARE, EnergyShare
from timing.calibration.profile import Profile
from timing.calibration.target import check_target
from timing.calibration.timetable import Timetable
from timing.calibration.uncertainty import rst_interval
from timing.calibration.warnings import COOL_MARGIN_CELSIUS, LEAST_PROCESSES, PRECISION
from timing.calibration.worker import WorkerRequest, WorkerResult

SECONDS = 120.0
RETRIES = 3
LIMIT_SECONDS = 3600.0
# Of all seconds: the longest wait of each process for a GPU to cool.
COOL_SHARE = 0.05
# Above these nobody waits for an end, or torch ends the process.
MOST_SECONDS = 1e9
MOST_PROCESSES = 1000
MOST_THREADS = 1024

CHILD = "from timing.calibration.worker import main; main()"


class CalibrationError(RuntimeError):
    """A calibration that gave no profile; `stderr` is what the process that failed said before."""

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


def calibrate_in_processes(
    target: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    processes: int = LEAST_PROCESSES,
    seconds: float = SECONDS,
    precision: float = PRECISION,
    threads: int = 1,
    force: bool = False,
    limit_seconds: float = LIMIT_SECONDS,
    retries: int = RETRIES,
    on_progress: Callable[[float, str], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure a profile on this machine, each row of it in a fresh process.

    Each process imports the target, calls it, and runs `timing.calibrate` on what it returns. There
    are at least `processes` of them, and more until the interval of the reference iteration's RST
    is narrow enough or the time is used up. The least number measure for half of it in all, or for
    less, where starting them takes long. A process that was disturbed, ran on a processor slower
    than another process found it, or whose costs do not add up to a loop's time, is discarded and
    another one is run in its place, `retries` times in all, within one and a half times the time.

    Joules of operations are read in them too, where a counter tells (`timing.calibration.energy`):
    for at most half of the time, and of all operations or of none. A GPU is to cool between two
    processes to what the first began at, for a twentieth of the time at the most.

    To stop once an interval is narrow favours those that are narrow by chance: in a simulation with
    0.5 to 5% between processes it covered the truth 93 to 95% of the time, where it says 95%.

    Args:
        target: "MODULE:FUNCTION" or "FILE.py:FUNCTION"; the function returns a `CalibrationTarget`.
        arguments: what the function is called with; values that JSON can hold.
        processes: the fewest, 5 or more unless forced.
        seconds: for all processes together, their starts included. The fewest are run even if their
            starts alone take longer, which is told after the first.
        precision: half width of the 95% interval of the reference iteration's RST, as a share.
        threads: of torch and OpenMP.
        force: keep disturbed processes once no other may be run, with what disturbed them.
        limit_seconds: after which a process is taken to hang, and is ended.
        retries: processes that may be discarded.
        on_progress: told the fraction done, from 0 to 1, and what has just happened, with an
            estimate of the time left.
        say: told which joules, temperatures and passes are left out and why, and how long it waited
            for a GPU to cool; each once.

    Raises:
        ValueError: an argument makes no sense.
        CalibrationError: a process failed or hung, or the machine was too busy and it is not
            forced.
    """
    _check_processes(processes, force)
    for name, value, most in (
        ("seconds", seconds, MOST_SECONDS),
        ("precision", precision, math.inf),
        ("threads", threads, MOST_THREADS),
        ("limit_seconds", limit_seconds, MOST_SECONDS),
    ):
        if not value > 0:
            raise ValueError(f"{name} must be above zero: {value}")
        if value > most:
            raise ValueError(f"{name} must be at most {most:g}: {value:g}")
    time_left = Timetable(seconds, processes)
    request = WorkerRequest(
        target=target, arguments=dict(arguments or {}), seconds=seconds, threads=threads
    )
    said: set[str] = set()
    kept: list[WorkerResult] = []
    discarded = 0
    known_probe: float | None = None
    on_progress(0.0, f"{processes} processes or more, {time_left.said(processes)}")
    while True:
        own_seconds = time_left.share(processes - len(kept))
        changed = {
            "known_probe": known_probe,
            "seconds": own_seconds,
            "energy": _energy_share(kept, processes, seconds),
            "cool_to": _cool_to(kept),
            "cool_seconds": COOL_SHARE * seconds,
        }
        with time_left.process(own_seconds):
            kept.append(_run(request.model_copy(update=changed), limit_seconds))
        _check_alike(kept[0], kept[-1])
        for line in dict.fromkeys(kept[-1].said):
            if line not in said:
                said.add(line)
                say(line)
        known_probe = _fastest(known_probe, kept[-1].calibration.cpu_probe_seconds)
        if time_left.ran == 1 and (warning := time_left.too_short()):
            on_progress(time_left.done(processes - len(kept)), warning)
        busy = ""
        # All of them, for a later one may have found the processor faster.
        for result in list(kept):
            may_retry = discarded < retries and time_left.has_retry(processes - len(kept) + 1)
            errors = "; ".join(result.calibration.errors(known_probe))
            if not errors or (force and not may_retry):
                continue
            kept.remove(result)
            if may_retry:
                discarded += 1
                done = time_left.done(processes - len(kept))
                on_progress(done, f"discarded a process: {errors}")
            else:
                busy = errors
        if busy:
            if len(kept) >= processes:
                break
            raise CalibrationError(
                f"{discarded + 1} process(es) were disturbed, the latest: {busy}; leave the "
                "machine alone and calibrate again (--seconds gives time for more of them), or "
                "keep them by --force (force=True), and the profile will say so"
            )
        if not kept:
            continue
        profile = _profile(kept, discarded)
        left = processes - len(kept)
        on_progress(time_left.done(left), f"{_said_of(profile)}, {time_left.said(left)}")
        if left > 0:
            continue
        width = rst_interval(profile.reference_iteration, profile, "mlperf").half_width
        if width <= precision or not time_left.has_another():
            break
    on_progress(1.0, f"done, {discarded} discarded")
    return _profile(kept, discarded)


def _energy_share(kept: list[WorkerResult], processes: int, seconds: float) -> EnergyShare:
    """Return what the next process reads of joules, after these."""
    bursts = (name for each in kept if (found := each.calibration.energy) for name in found.bursts)
    return EnergyShare(
        seconds=SHARE * seconds / processes,
        processes=max(1, processes - len(kept)),
        read=dict(Counter(bursts)),
    )


def _cool_to(kept: list[WorkerResult]) -> dict[str, float]:
    """Return to what GPUs are to cool before the next process: near the coolest that one began."""
    coolest: dict[str, float] = {}
    for heat in (heat for each in kept for heat in each.calibration.heat):
        if (celsius := heat.before.celsius) is not None:
            coolest[heat.uuid] = min(celsius, coolest.get(heat.uuid, math.inf))
    return {uuid: celsius + COOL_MARGIN_CELSIUS for uuid, celsius in coolest.items()}


def _fastest(one: float | None, other: float | None) -> float | None:
    return min((probe for probe in (one, other) if probe is not None), default=None)


def _check_processes(processes: int, force: bool) -> None:
    if processes < 2 or (processes < LEAST_PROCESSES and not force):
        raise ValueError(
            f"{processes} processes are too few: the uncertainty lies between them, give "
            f"{LEAST_PROCESSES} or more (at least 2 if forced)"
        )
    if processes > MOST_PROCESSES:
        raise ValueError(f"processes must be at most {MOST_PROCESSES}: {processes}")


def _run(request: WorkerRequest, limit_seconds: float) -> WorkerResult:
    check_target(request.target)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(request.threads),
        # The child finds its modules where this process does.
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        request_path, result_path = Path(folder, "request.json"), Path(folder, "result.json")
        request_path.write_bytes(request.model_dump_json().encode())
        command = [sys.executable, "-c", CHILD, str(request_path), str(result_path)]
        # Nothing is written: it ends with this process, however that ends, and the child then too.
        reading, writing = os.pipe()
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=reading,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stderr or b""
            raise CalibrationError(
                f"a process that calibrates {request.target} was not done after "
                f"{limit_seconds:g} s and was ended: give a higher limit, or see why it hangs",
                said.decode(errors="replace") if isinstance(said, bytes) else said,
            ) from error
        finally:
            os.close(reading)
            os.close(writing)
        if done.returncode != 0:
            before, _, last = done.stderr.rstrip().rpartition("\n")
            raise CalibrationError(
                f"a process that calibrates {request.target} failed ({_ending(done.returncode)}): "
                f"{last or 'it said nothing'}",
                before and f"{before}\n",
            )
        return WorkerResult.model_validate_json(result_path.read_bytes())


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    return f"ended by {signal.Signals(-status).name}"


def _check_alike(first: WorkerResult, later: WorkerResult) -> None:
    # A virtual machine may be given more memory while it runs, which makes it no other.
    if later.machine.memory_bytes != first.machine.memory_bytes:
        memory = {"memory_bytes": first.machine.memory_bytes}
        later = later.model_copy(update={"machine": later.machine.model_copy(update=memory)})
    for what in ("machine", "software", "workload", "every"):
        if getattr(first, what) != getattr(later, what):
            raise CalibrationError(
                f"the processes do not measure the same: {what} is {getattr(first, what)} in the "
                f"first and {getattr(later, what)} in a later one"
            )


def _profile(results: list[WorkerResult], discarded: int) -> Profile:
    first = results[0]
    return Profile(
        machine=first.machine,
        software=first.software,
        workload=first.workload,
        every=first.every,
        processes=tuple(result.calibration for result in results),
        discarded=discarded,
    )


def _said_of(profile: Profile) -> str:
    loop = rst_interval(profile.reference_iteration, profile, "mlperf")
    known = "" if len(profile.processes) < 2 else f" ±{loop.half_width:.1%}"
    return (
        f"{len(profile.processes)} process(es): {loop.estimate:.4g} s a reference iteration"
        f"{known}, additivity error {profile.additivity_error:+.1%}"
    )
