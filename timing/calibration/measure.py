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
MIN_PASSES = 200
SHORTEST_CHUNK = 20
ATTEMPTS = 3
# How many times as much as is needed it measures, to find the processor free.
MAX_EFFORT = 4


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
    outside (`timing.calibration.cpu_probe`) are left out, and others are run for them, up to four
    times as many in all, unless hardly any is undisturbed. An operation that would lose more than
    nineteen in twenty of its samples keeps all of them, as do the passes timed as a whole, and the
    noise says so.
    Where the medians and those passes differ by more than `max_additivity_error`, the noise of the
    moment is in one of them, and the measurement is repeated, at most twice; the attempt with the
    least difference is returned, and what is left of it, the additivity error, with it.

    Args:
        operations: by name, in the order in which they follow one another in a pass.
        seconds: time for the single timings of one attempt, above zero; the passes timed as a whole
            take as long again, and 200 of each are the least.
        max_additivity_error: a share, such as 0.05.
        on_progress: told the fraction done, from 0 to 1.
        known_probe: what the processor is known to reach, in the seconds of
            `timing.calibration.cpu_probe`, if it is.

    Raises:
        ValueError: there is no operation, or one is to run every 0 passes.
    """
    if not operations:
        raise ValueError("there is no operation to calibrate")
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
    period = math.lcm(*(operation.every for operation in operations.values()))
    chunk = period * math.ceil(SHORTEST_CHUNK / period)
    segments: list[_Segment] = []
    watch = NoiseWatch()
    with watch:
        _loop(operations, range(WARM_UP_STEPS))
        while True:
            segments += _chunk(operations, chunk)
            free = drop_disturbed([(segment.probe, segment) for segment in segments], known_probe)
            share = _share_done(operations, free, seconds)
            on_progress(0.9 * min(1.0, share))
            effort = _share_done(operations, segments, seconds)
            hopeless = len(free) < (1 - MAX_DISTURBED_SHARE) * len(segments)
            if share >= 1 or effort >= MAX_EFFORT or (effort >= 1 and hopeless):
                break
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
        cpu_probe_seconds=undisturbed_probe([segment.probe for segment in wholes]),
    )


def _chunk(operations: Mapping[str, Operation], length: int) -> list[_Segment]:
    """Run the loop so many passes long, timing each operation, and once more, as a whole."""
    segments: list[_Segment] = []
    probe = cpu_probe_seconds()

    def add(passes: range, samples: Mapping[str, float] | None, seconds: float) -> None:
        nonlocal probe
        before, probe = probe, cpu_probe_seconds()
        segments.append(_Segment(passes, samples, seconds, max(before, probe)))

    for number in range(1, length + 1):
        passes = range(number, number + 1)
        begin = time.perf_counter()
        samples = {name: _timed(operations[name].run) for name in _due(operations, number)}
        add(passes, samples, time.perf_counter() - begin)
    # Passes overlap on a GPU: to wait for it after each would make them longer than they are.
    together = length if torch.cuda.is_initialized() else 1
    for number in range(1, length + 1, together):
        passes = range(number, number + together)
        add(passes, None, _timed(partial(_loop, operations, passes)))
    return segments


def _share_done(
    operations: Mapping[str, Operation], segments: Sequence[_Segment], seconds: float
) -> float:
    """Return the share there is of what is needed: seconds, passes of both kinds, samples."""
    single = [segment for segment in segments if segment.samples is not None]
    whole = sum(len(segment.passes) for segment in segments) - len(single)
    # The probe takes its time too, more than a pass does where passes are short.
    timed_seconds = math.fsum(segment.seconds + segment.probe for segment in single)
    rarest = min(map(len, _samples(operations, segments).values()))
    # Two samples, at the least, of the rarest operation.
    return min(timed_seconds / seconds, len(single) / MIN_PASSES, whole / MIN_PASSES, rarest / 2)


def _undisturbed(found: list[_T], free: list[_T]) -> tuple[list[_T], float]:
    """Return those undisturbed, or all where hardly any are, and the share that was disturbed."""
    # A single sample has no spread.
    share = 1 - len(free) / len(found) if len(free) > 1 else 1.0
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
