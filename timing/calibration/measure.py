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

from timing.calibration.disturbance import LARGEST_SLOWED_SHARE, NoiseWatch
from timing.calibration.pace import is_slowed, own_pace, pace_seconds
from timing.calibration.profile import Calibration, Cost
from timing.statistics import interquartile_range

_T = TypeVar("_T")

WARM_UP_STEPS = 10
CLOSURE_STEPS = 200
SHORTEST_CHUNK = 20
ATTEMPTS = 3
# How many times as much as is needed it measures, to find the processor free.
PATIENCE = 4


@dataclass(frozen=True)
class Operation:
    """Something with a cost: `run` it after every `every`-th pass through the loop."""

    run: Callable[[], object]
    every: int = 1


@dataclass(frozen=True)
class Calibratable:
    """What is to be measured: the function that `python -m timing calibrate` calls returns it.

    Attributes:
        workload: what the costs depend on: model, batch, shapes, dtype, optimizer, k.
        operations: by name, in the order in which they follow one another in a pass of the loop.
    """

    workload: Mapping[str, str | int | float]
    operations: Mapping[str, Operation]


@dataclass(frozen=True)
class _Stretch:
    """Passes that ran in a row, each operation timed, or all of them as a whole.

    Attributes:
        passes: by number; one, if its operations were timed.
        samples: seconds of each operation in it; None if timed as a whole.
        seconds: of all.
        pace: of the processor, the slower of before and after.
    """

    passes: range
    samples: Mapping[str, float] | None
    seconds: float
    pace: float


def calibrate(
    operations: Mapping[str, Operation],
    seconds: float,
    largest_closure: float,
    on_progress: Callable[[float], None] = lambda _: None,
    known_pace: float | None = None,
) -> Calibration:
    """Time the operations interleaved, as they alternate in training, not each in a tight loop.

    In tight loops small operations run from the cache and look up to three times cheaper than they
    are. Some passes are timed operation by operation, and as many as a whole, to be compared with
    what the medians predict. The two take turns, so that a machine that grows slower in the
    meantime does so for both. Passes before or after which the processor was slowed down from
    outside (`timing.calibration.pace`) are left out, and others are run for them, up to four times
    as many in all. An operation that would lose more than nineteen in twenty of its samples keeps
    all of them, as do the passes timed as a whole, and the noise says so.
    Where the medians and those passes differ by more than `largest_closure`, the noise of the
    moment is in one of them, and the measurement is repeated, at most twice; the attempt that
    closes best is returned. The difference that is left, the closure, is stated with it.

    Args:
        operations: by name, in the order in which they follow one another in a pass.
        seconds: time for the single timings of one attempt, above zero; the passes timed as a whole
            take as long again, and 200 of each are the least.
        largest_closure: a share, such as 0.05.
        on_progress: told the fraction done, from 0 to 1.
        known_pace: what the processor is known to reach, in the seconds of
            `timing.calibration.pace`, if it is.

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
        attempts.append(_attempt(operations, seconds, on_progress, known_pace))
        if abs(attempts[-1].closure) <= largest_closure or attempt == ATTEMPTS - 1:
            break
    on_progress(1.0)
    return min(attempts, key=lambda calibration: abs(calibration.closure))


def _attempt(
    operations: Mapping[str, Operation],
    seconds: float,
    on_progress: Callable[[float], None],
    known_pace: float | None,
) -> Calibration:
    period = math.lcm(*(operation.every for operation in operations.values()))
    chunk = period * math.ceil(SHORTEST_CHUNK / period)
    stretches: list[_Stretch] = []
    watch = NoiseWatch()
    with watch:
        _loop(operations, range(WARM_UP_STEPS))
        while True:
            stretches += _chunk(operations, chunk)
            own = own_pace([stretch.pace for stretch in stretches])
            if known_pace is not None:
                own = min(own, known_pace)
            free = [stretch for stretch in stretches if not is_slowed(stretch.pace, own)]
            share = _share_done(operations, free, seconds)
            on_progress(0.9 * min(1.0, share))
            if share >= 1 or _share_done(operations, stretches, seconds) >= PATIENCE:
                break
    wholes, slowed_share = _undisturbed(_wholes(stretches), _wholes(free))
    samples, free_samples = _samples(operations, stretches), _samples(operations, free)
    for name in operations:
        samples[name], share = _undisturbed(samples[name], free_samples[name])
        slowed_share = max(slowed_share, share)
    medians = {name: statistics.median(found) for name, found in samples.items()}
    predicted = math.fsum(
        medians[name]
        for stretch in wholes
        for number in stretch.passes
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
        closure=predicted / math.fsum(stretch.seconds for stretch in wholes) - 1,
        noise=watch.noise(slowed_share=slowed_share),
        pace_seconds=own_pace([stretch.pace for stretch in wholes]),
    )


def _chunk(operations: Mapping[str, Operation], length: int) -> list[_Stretch]:
    """Run the loop so many passes long, timing each operation, and once more, as a whole."""
    stretches: list[_Stretch] = []
    pace = pace_seconds()

    def add(passes: range, samples: Mapping[str, float] | None, seconds: float) -> None:
        nonlocal pace
        before, pace = pace, pace_seconds()
        stretches.append(_Stretch(passes, samples, seconds, max(before, pace)))

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
    return stretches


def _share_done(
    operations: Mapping[str, Operation], stretches: Sequence[_Stretch], seconds: float
) -> float:
    """How much there is of what is needed: seconds, passes of both kinds, samples of each."""
    single = [stretch for stretch in stretches if stretch.samples is not None]
    whole = sum(len(stretch.passes) for stretch in stretches) - len(single)
    # The look at the pace takes its time too, more than a pass does where passes are short.
    timed_seconds = math.fsum(stretch.seconds + stretch.pace for stretch in single)
    rarest = min(map(len, _samples(operations, stretches).values()))
    # Two samples, at the least, of the rarest operation.
    return min(
        timed_seconds / seconds, len(single) / CLOSURE_STEPS, whole / CLOSURE_STEPS, rarest / 2
    )


def _undisturbed(found: list[_T], free: list[_T]) -> tuple[list[_T], float]:
    """Those of a free processor, or all where hardly any are, and the share that was slowed."""
    # A single sample has no spread.
    share = 1 - len(free) / len(found) if len(free) > 1 else 1.0
    return (found if share > LARGEST_SLOWED_SHARE else free), share


def _wholes(stretches: Sequence[_Stretch]) -> list[_Stretch]:
    return [stretch for stretch in stretches if stretch.samples is None]


def _samples(
    operations: Mapping[str, Operation], stretches: Sequence[_Stretch]
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in operations}
    for stretch in stretches:
        for name, seconds in (stretch.samples or {}).items():
            samples[name].append(seconds)
    return samples


def _due(operations: Mapping[str, Operation], number: int) -> list[str]:
    """Those that run in the pass of this number, in their order."""
    return [name for name, operation in operations.items() if number % operation.every == 0]


def _loop(operations: Mapping[str, Operation], passes: range) -> None:
    for number in passes:
        for name in _due(operations, number):
            operations[name].run()


def _timed(run: Callable[[], object]) -> float:
    """Seconds one call takes, the GPU's work included."""
    _finish_gpu_work()
    begin = time.perf_counter()
    run()
    _finish_gpu_work()
    return time.perf_counter() - begin


def _finish_gpu_work() -> None:
    # Asking whether CUDA is there must not be what starts it.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
