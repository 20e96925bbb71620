"""Measure in this process what operations cost, inside a loop like the real one.

One process says little of the next one: `timing.processes` runs this in several fresh ones.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from timing.noise import NoiseWatch
from timing.profile import Calibration, Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WARM_UP_STEPS = 10
CLOSURE_STEPS = 200
SHORTEST_CHUNK = 20
ATTEMPTS = 3


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


def calibrate(
    operations: Mapping[str, Operation],
    seconds: float,
    largest_closure: float,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Calibration:
    """Time the operations interleaved, as they alternate in training, not each in a tight loop.

    In tight loops small operations run from the cache and look up to three times cheaper than they
    are. Some passes are timed operation by operation, and as many as a whole, to be compared with
    what the medians predict. The two take turns, so that a machine that grows slower in the
    meantime does so for both. Where they differ by more than `largest_closure`, the noise of the
    moment is in one of them, and the measurement is repeated, at most twice; the attempt that
    closes best is returned. By the difference that is left, the closure, the medians are scaled
    when they are charged, so that they add up to the time of the passes as a whole.

    Args:
        operations: by name, in the order in which they follow one another in a pass.
        seconds: time for the single timings of one attempt, above zero; the passes timed as a whole
            take as long again, and 200 of each are the least.
        largest_closure: a share, such as 0.05.
        on_progress: told the fraction done, from 0 to 1.

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
        attempts.append(_attempt(operations, seconds, on_progress))
        if abs(attempts[-1].closure) <= largest_closure or attempt == ATTEMPTS - 1:
            break
    on_progress(1.0)
    return min(attempts, key=lambda calibration: abs(calibration.closure))


def _attempt(
    operations: Mapping[str, Operation], seconds: float, on_progress: Callable[[float], None]
) -> Calibration:
    samples: dict[str, list[float]] = {name: [] for name in operations}
    period = math.lcm(*(operation.every for operation in operations.values()))
    chunk = period * math.ceil(SHORTEST_CHUNK / period)
    watch = NoiseWatch()
    with watch:
        _loop(operations, range(WARM_UP_STEPS))
        timed_seconds = whole_seconds = 0.0
        chunks = 0
        # Two chunks give two samples, at the least, of the rarest operation.
        while chunks < 2 or chunks * chunk < CLOSURE_STEPS or timed_seconds < seconds:
            begin = time.perf_counter()
            for number in range(1, chunk + 1):
                for name, operation in operations.items():
                    if number % operation.every == 0:
                        samples[name].append(_timed(operation.run))
            timed_seconds += time.perf_counter() - begin
            whole_seconds += _timed(lambda: _loop(operations, range(1, chunk + 1)))
            chunks += 1
            share = min(timed_seconds / seconds, chunks * chunk / CLOSURE_STEPS)
            on_progress(0.9 * min(1.0, share))
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    predicted = math.fsum(medians[name] * len(taken) for name, taken in samples.items())
    costs = {
        name: Cost(
            median_seconds=medians[name],
            spread_seconds=_interquartile_range(taken),
            samples=len(taken),
        )
        for name, taken in samples.items()
    }
    return Calibration(costs=costs, closure=predicted / whole_seconds - 1, noise=watch.noise())


def _loop(operations: Mapping[str, Operation], passes: range) -> None:
    for number in passes:
        for operation in operations.values():
            if number % operation.every == 0:
                operation.run()


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


def _interquartile_range(samples: list[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low
