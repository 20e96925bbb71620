"""The passes of one phase of a training loop, summed up."""

from __future__ import annotations

import random
import statistics
from array import array
from dataclasses import dataclass

from timing.statistics import interquartile_range

HOST = "host"
# Half a megabyte a phase; all passes of most runs.
MOST_SAMPLES = 2**16


@dataclass(frozen=True)
class Phase:
    """The passes of one phase; what ran in a phase inside it is counted there, and not here.

    Attributes:
        count: passes counted: not the warm-up, and none that raised an exception.
        median_seconds: of the counted passes, by `clock`; None where there is none.
        spread_seconds: their interquartile range; None where there are fewer than two.
        total_seconds: their sum, by `clock`.
        cpu_seconds: processor time of this process in them, all threads together; worker processes
            of a data loader have their own.
        clock: "host" (elapsed time by the host's clock), or "cuda events" (time on the GPU, from
            the moment it was done with all before the pass to the moment it was done with the
            pass), or "events" (the same on the accelerator whose events the timer was given).
        warm_up_count: passes left out as warm-up.
        warm_up_seconds: their sum.
    """

    count: int
    median_seconds: float | None
    spread_seconds: float | None
    total_seconds: float
    cpu_seconds: float
    clock: str
    warm_up_count: int
    warm_up_seconds: float


class PhaseTally:
    """Running sums of a phase, and the sample its median is taken from."""

    __slots__ = (
        "clock",
        "count",
        "cpu_seconds",
        "random",
        "runs",
        "samples",
        "seconds",
        "warm_up",
        "warm_up_count",
        "warm_up_left",
        "warm_up_seconds",
    )

    def __init__(self, warm_up: int) -> None:
        self.runs = False
        self.warm_up = self.warm_up_left = warm_up
        self.warm_up_count = 0
        self.warm_up_seconds = 0.0
        # A generator of its own, so that timing a run does not change it.
        self.random = random.Random(0).random
        self.clock = HOST
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.samples = array("d")

    def add(self, seconds: float, cpu_seconds: float, clock: str) -> None:
        """Add a pass; one by another clock makes all before it warm-up."""
        if clock != self.clock:
            self.clock = clock
            self.warm_up_count += self.count
            self.warm_up_seconds += self.seconds
            self.warm_up_left = self.warm_up
            self._clear()
        if self.warm_up_left:
            self.warm_up_left -= 1
            self.warm_up_count += 1
            self.warm_up_seconds += seconds
            return
        self.count += 1
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        if len(self.samples) < MOST_SAMPLES:
            self.samples.append(seconds)
        elif (place := int(self.random() * self.count)) < MOST_SAMPLES:
            self.samples[place] = seconds

    def summary(self) -> Phase:
        """Return what the passes took."""
        return Phase(
            count=self.count,
            median_seconds=statistics.median(self.samples) if self.samples else None,
            spread_seconds=interquartile_range(self.samples) if len(self.samples) > 1 else None,
            total_seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            clock=self.clock,
            warm_up_count=self.warm_up_count,
            warm_up_seconds=self.warm_up_seconds,
        )
