"""Measure in this process what operations cost, inside a loop like the real one.

One process says little of the next one: `timing.calibration.processes` runs this in several fresh
ones.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from timing.calibration.cpu_probe import cpu_probe_seconds, drop_disturbed, undisturbed_probe
from timing.calibration.disturbance import NoiseWatch
from timing.calibration.energy import EnergyShare, LoopEnergy
from timing.calibration.row import Calibration, Cost
from timing.calibration.segments import (
    FEWEST_SAMPLES,
    Segment,
    counts,
    due,
    rarest,
    samples_of,
    undisturbed,
    unthrottled,
    wholes_of,
)
from timing.calibration.target import Operation
from timing.statistics import interquartile_range

WARM_UP_STEPS = 10
# The first pass has all operations and is slow; more of a warm-up than this would leave too little.
WARM_UP_SHARE = 0.2
# Passes of each kind that take turns.
LONGEST_BLOCK = 20
ATTEMPTS = 3


def calibrate(
    operations: Mapping[str, Operation],
    seconds: float,
    max_additivity_error: float,
    on_progress: Callable[[float], None] = lambda _: None,
    known_probe: float | None = None,
    energy: EnergyShare | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Time the operations interleaved, as they alternate in training, not each in a tight loop.

    In tight loops small operations run from the cache and look up to three times cheaper than they
    are. Some passes are timed operation by operation, and as many as a whole, to be compared with
    what the medians predict. The two take turns, so that a machine that grows slower in the
    meantime does so for both. Passes before or after which the processor was slowed down from
    outside (`timing.calibration.cpu_probe`) are left out, as are those in which a GPU was
    throttled. An operation that would lose more than nineteen in twenty of its samples keeps all of
    them, as do the passes timed as a whole, and the noise says so.
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
        energy: what of joules is read afterwards (`timing.calibration.energy`); nothing, if None.
        say: told which joules are not read, and why.

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
    attempts: list[tuple[Calibration, LoopEnergy | None]] = []
    for _ in range(ATTEMPTS):
        loop = LoopEnergy(say) if energy else None
        attempts.append((_attempt(operations, seconds, on_progress, known_probe, loop), loop))
        if abs(attempts[-1][0].additivity_error) <= max_additivity_error:
            break
    found, loop = min(attempts, key=lambda attempt: abs(attempt[0].additivity_error))
    if energy and loop:
        runs = {name: partial(_timed, each.run) for name, each in operations.items()}
        found = found.model_copy(
            update={"energy": loop.energy(runs, found.seconds, energy, found.noise)}
        )
    on_progress(1.0)
    return found


def _attempt(
    operations: Mapping[str, Operation],
    seconds: float,
    on_progress: Callable[[float], None],
    known_probe: float | None,
    loop: LoopEnergy | None,
) -> Calibration:
    segments: list[Segment] = []
    watch = NoiseWatch()
    with watch:
        begin = time.perf_counter()
        latest = _warm_up(operations, begin + WARM_UP_SHARE * seconds)
        if loop:
            loop.begin()
        number, missing = 1, FEWEST_SAMPLES
        while True:
            if missing:
                missing = max(0, FEWEST_SAMPLES - rarest(operations, segments))
            # Kept for samples of what is due more rarely than there is time for passes.
            end = begin + seconds - missing * math.fsum(latest.values())
            now = time.perf_counter()
            on_progress(0.9 * min(1.0, (now - begin) / seconds))
            each = math.fsum(took / operations[name].every for name, took in latest.items())
            fit = (end - now) / (2 * each) if each else LONGEST_BLOCK
            if segments and fit < 1:
                break
            passes = range(number, number + max(1, min(LONGEST_BLOCK, int(fit))))
            block = _block(operations, passes, watch)
            latest |= {
                name: statistics.fmean(found)
                for name, found in samples_of(operations, block).items()
                if found
            }
            segments += block
            number = passes.stop
        while rarest(operations, segments) < FEWEST_SAMPLES:
            # In a pass of this number all operations are due.
            segments += _singles(operations, range(1))
        # Where nothing runs in each pass, as long as there was no time for more of them.
        if not any(due(operations, n) for each in wholes_of(segments) for n in each.passes):
            segments += _as_a_whole(operations, range(1), 1)
        if loop:
            loop.end(counts(operations, segments))
    segments, throttled_share = unthrottled(operations, segments)
    free = drop_disturbed([(segment.probe, segment) for segment in segments], known_probe)
    wholes, disturbed_share = undisturbed(wholes_of(segments), wholes_of(free))
    samples, free_samples = samples_of(operations, segments), samples_of(operations, free)
    for name in operations:
        samples[name], share = undisturbed(samples[name], free_samples[name])
        disturbed_share = max(disturbed_share, share)
    medians = {name: statistics.median(found) for name, found in samples.items()}
    predicted = math.fsum(
        medians[name]
        for segment in wholes
        for number in segment.passes
        for name in due(operations, number)
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
        noise=watch.noise(disturbed_share, throttled_share),
        cpu_probe_seconds=undisturbed_probe([segment.probe for segment in segments]),
    )


def _warm_up(operations: Mapping[str, Operation], end: float) -> dict[str, float]:
    """Run the first passes, not far beyond a moment; returns what each operation took latest."""
    latest: dict[str, float] = {}
    # In the pass of number 0 all are due.
    for number in range(WARM_UP_STEPS):
        if number and time.perf_counter() >= end:
            break
        latest |= {name: _timed(operations[name].run) for name in due(operations, number)}
    return latest


def _block(operations: Mapping[str, Operation], passes: range, watch: NoiseWatch) -> list[Segment]:
    """Run these passes of the loop, timing each operation, and once more, as a whole."""
    # Passes overlap on a GPU: to wait for it after each would make them longer than they are.
    together = len(passes) if torch.cuda.is_initialized() else 1
    found: list[Segment] = []
    for run in (
        partial(_singles, operations, passes),
        partial(_as_a_whole, operations, passes, together),
    ):
        segments, throttled = watch.throttled_between(run)
        found += [replace(segment, throttled=throttled) for segment in segments]
    return found


def _as_a_whole(operations: Mapping[str, Operation], passes: range, together: int) -> list[Segment]:
    """Run these passes of the loop, so many of them timed together."""
    segments: list[Segment] = []
    probe = cpu_probe_seconds()
    for number in range(passes.start, passes.stop, together):
        some = range(number, number + together)
        seconds = _timed(partial(_loop, operations, some))
        before, probe = probe, cpu_probe_seconds()
        segments.append(Segment(some, None, seconds, max(before, probe)))
    return segments


def _singles(operations: Mapping[str, Operation], passes: range) -> list[Segment]:
    """Run these passes of the loop, timing each operation."""
    segments: list[Segment] = []
    probe = cpu_probe_seconds()
    for number in passes:
        begin = time.perf_counter()
        samples = {name: _timed(operations[name].run) for name in due(operations, number)}
        seconds = time.perf_counter() - begin
        before, probe = probe, cpu_probe_seconds()
        segments.append(Segment(range(number, number + 1), samples, seconds, max(before, probe)))
    return segments


def _loop(operations: Mapping[str, Operation], passes: range) -> None:
    for number in passes:
        for name in due(operations, number):
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
