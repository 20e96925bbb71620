"""Measure in this process what operations cost, inside a loop like the real one.

One process says little of the next one: `timing.calibration.processes` runs this in several fresh
ones.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from timing.calibration.cpu_probe import cpu_probe_seconds, drop_disturbed, undisturbed_probe
from timing.calibration.disturbance import MAX_DISTURBED_SHARE, NoiseWatch
from timing.calibration.row import Calibration, Cost
from timing.calibration.target import Operation
from timing.statistics import interquartile_range

_T = TypeVar("_T")

WARM_UP_STEPS = 10
# The first pass has all operations and is slow; more of a warm-up than this would leave too little.
WARM_UP_SHARE = 0.2
# Passes of each kind that take turns.
LONGEST_BLOCK = 20
FEWEST_SAMPLES = 2
ATTEMPTS = 3


@dataclass(frozen=True)
class _Segment:
    """Passes that ran in a row, each operation timed, or all of them as a whole.

    Attributes:
        passes: by number; one, if its operations were timed.
        samples: seconds of each operation in it; None if timed as a whole.
        seconds: of all.
        probe: seconds that the processor's probe took, the slower of before and after.
    """

    passes: range
    samples: Mapping[str, float] | None
    seconds: float
    probe: float


def calibrate(
    operations: Mapping[str, Operation],
    seconds: float,
    max_additivity_error: float,
    on_progress: Callable[[float], None] = lambda _: None,
    known_probe: float | None = None,
) -> Calibration:
    """Time the operations interleaved, as they alternate in training, not each in a tight loop.

    In tight loops small operations run from the cache and look up to three times cheaper than they
    are. Some passes are timed operation by operation, and as many as a whole, to be compared with
    what the medians predict. The two take turns, so that a machine that grows slower in the
    meantime does so for both. Passes before or after which the processor was slowed down from
    outside (`timing.calibration.cpu_probe`) are left out. An operation that would lose more than
    nineteen in twenty of its samples keeps all of them, as do the passes timed as a whole, and the
    noise says so.
    Where the medians and those passes differ by more than `max_additivity_error`, the noise of the
    moment is in one of them, and the measurement is repeated, at most twice; the attempt with the
    least difference is returned, and what is left of it, the additivity error, with it.

    Args:
        operations: by name, in the order in which they follow one another in a pass.
        seconds: of one attempt, all told, above zero. It is kept to a pass of all operations: the
            least is two samples of each operation, and one pass timed as a whole.
        max_additivity_error: a share, such as 0.05.
        on_progress: told the fraction done, from 0 to 1.
        known_probe: what the processor is known to reach, in the seconds of
            `timing.calibration.cpu_probe`, if it is.

    Raises:
        ValueError: there is no operation, one is to run every 0 passes, or there is no time.
    """
    if not operations:
        raise ValueError("there is no operation to calibrate")
    if not seconds > 0:
        raise ValueError(f"a calibration takes a time above zero, not {seconds!r} s")
    for name, operation in operations.items():
        if operation.every < 1:
            raise ValueError(f"{name!r} cannot run every {operation.every} passes: give 1 or more")
    attempts = []
    for attempt in range(ATTEMPTS):
        attempts.append(_attempt(operations, seconds, on_progress, known_probe))
        if abs(attempts[-1].additivity_error) <= max_additivity_error or attempt == ATTEMPTS - 1:
            break
    on_progress(1.0)
    return min(attempts, key=lambda calibration: abs(calibration.additivity_error))


def _attempt(
    operations: Mapping[str, Operation],
    seconds: float,
    on_progress: Callable[[float], None],
    known_probe: float | None,
) -> Calibration:
    segments: list[_Segment] = []
    watch = NoiseWatch()
    with watch:
        begin = time.perf_counter()
        latest = _warm_up(operations, begin + WARM_UP_SHARE * seconds)
        number, missing = 1, FEWEST_SAMPLES
        while True:
            if missing:
                missing = max(0, FEWEST_SAMPLES - _rarest(operations, segments))
            # Kept for samples of what is due more rarely than there is time for passes.
            end = begin + seconds - missing * math.fsum(latest.values())
            now = time.perf_counter()
            on_progress(0.9 * min(1.0, (now - begin) / seconds))
            each = math.fsum(took / operations[name].every for name, took in latest.items())
            fit = (end - now) / (2 * each) if each else LONGEST_BLOCK
            if segments and fit < 1:
                break
            passes = range(number, number + max(1, min(LONGEST_BLOCK, int(fit))))
            block = _block(operations, passes)
            latest |= {
                name: statistics.fmean(found)
                for name, found in _samples(operations, block).items()
                if found
            }
            segments += block
            number = passes.stop
        while _rarest(operations, segments) < FEWEST_SAMPLES:
            # In a pass of this number all operations are due.
            segments += _singles(operations, range(1))
        # Where nothing runs in each pass, as long as there was no time for more of them.
        if not any(_due(operations, n) for each in _wholes(segments) for n in each.passes):
            segments += _as_a_whole(operations, range(1), 1)
    free = drop_disturbed([(segment.probe, segment) for segment in segments], known_probe)
    wholes, disturbed_share = _undisturbed(_wholes(segments), _wholes(free))
    samples, free_samples = _samples(operations, segments), _samples(operations, free)
    for name in operations:
        samples[name], share = _undisturbed(samples[name], free_samples[name])
        disturbed_share = max(disturbed_share, share)
    medians = {name: statistics.median(found) for name, found in samples.items()}
    predicted = math.fsum(
        medians[name]
        for segment in wholes
        for number in segment.passes
        for name in _due(operations, number)
    )
    costs = {
        name: Cost(
            median_seconds=medians[name],
            spread_seconds=interquartile_range(found),
            samples=len(found),
        )
        for name, found in samples.items()
    }
    return Calibration(
        costs=costs,
        additivity_error=predicted / math.fsum(segment.seconds for segment in wholes) - 1,
        noise=watch.noise(disturbed_share=disturbed_share),
        cpu_probe_seconds=undisturbed_probe([segment.probe for segment in segments]),
    )


def _warm_up(operations: Mapping[str, Operation], end: float) -> dict[str, float]:
    """Run the first passes, not far beyond a moment; returns what each operation took latest."""
    latest: dict[str, float] = {}
    # In the pass of number 0 all are due.
    for number in range(WARM_UP_STEPS):
        if number and time.perf_counter() >= end:
            break
        latest |= {name: _timed(operations[name].run) for name in _due(operations, number)}
    return latest


def _block(operations: Mapping[str, Operation], passes: range) -> list[_Segment]:
    """Run these passes of the loop, timing each operation, and once more, as a whole."""
    # Passes overlap on a GPU: to wait for it after each would make them longer than they are.
    together = len(passes) if torch.cuda.is_initialized() else 1
    return _singles(operations, passes) + _as_a_whole(operations, passes, together)


def _as_a_whole(
    operations: Mapping[str, Operation], passes: range, together: int
) -> list[_Segment]:
    """Run these passes of the loop, so many of them timed together."""
    segments: list[_Segment] = []
    probe = cpu_probe_seconds()
    for number in range(passes.start, passes.stop, together):
        some = range(number, number + together)
        seconds = _timed(partial(_loop, operations, some))
        before, probe = probe, cpu_probe_seconds()
        segments.append(_Segment(some, None, seconds, max(before, probe)))
    return segments


def _singles(operations: Mapping[str, Operation], passes: range) -> list[_Segment]:
    """Run these passes of the loop, timing each operation."""
    segments: list[_Segment] = []
    probe = cpu_probe_seconds()
    for number in passes:
        begin = time.perf_counter()
        samples = {name: _timed(operations[name].run) for name in _due(operations, number)}
        seconds = time.perf_counter() - begin
        before, probe = probe, cpu_probe_seconds()
        segments.append(_Segment(range(number, number + 1), samples, seconds, max(before, probe)))
    return segments


def _rarest(operations: Mapping[str, Operation], segments: Sequence[_Segment]) -> int:
    """Return how many samples there are of the operation that has the fewest."""
    return min(map(len, _samples(operations, segments).values()))


def _undisturbed(found: list[_T], free: list[_T]) -> tuple[list[_T], float]:
    """Return those undisturbed, or all where hardly any are, and the share that was disturbed."""
    # A single sample has no spread.
    share = 1 - len(free) / len(found) if len(free) > 1 or free == found else 1.0
    return (found if share > MAX_DISTURBED_SHARE else free), share


def _wholes(segments: Sequence[_Segment]) -> list[_Segment]:
    return [segment for segment in segments if segment.samples is None]


def _samples(
    operations: Mapping[str, Operation], segments: Sequence[_Segment]
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in operations}
    for segment in segments:
        for name, seconds in (segment.samples or {}).items():
            samples[name].append(seconds)
    return samples


def _due(operations: Mapping[str, Operation], number: int) -> list[str]:
    """Return the operations that run in the pass of this number, in their order."""
    return [name for name, operation in operations.items() if number % operation.every == 0]


def _loop(operations: Mapping[str, Operation], passes: range) -> None:
    for number in passes:
        for name in _due(operations, number):
            operations[name].run()


def _timed(run: Callable[[], object]) -> float:
    """Return the seconds that one call takes, the GPU's work included."""
    _finish_gpu_work()
    begin = time.perf_counter()
    run()
    _finish_gpu_work()
    return time.perf_counter() - begin


def _finish_gpu_work() -> None:
    # Asking whether CUDA is there must not be what starts it.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
