"""The time of a calibration, shared among its processes so that what was asked for is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Of a process, to start and to set up what it measures, until one was seen to.
START_SECONDS = 3.0
# In which a process measures, where the time is short.
LEAST_SECONDS = 0.5
# Of the seconds asked for: others in the place of disturbed processes may take it to this.
MOST_OVER = 1.5


class Timetable:
    """Shares the time among the processes, by what those before have taken.

    Args:
        seconds: for all of them.
        processes: the fewest.

    Attributes:
        ran: how many processes have ended.
    """

    def __init__(self, seconds: float, processes: int) -> None:
        self.ran = 0
        self._began = time.monotonic()
        self._seconds, self._processes = seconds, processes
        self._beside = 0.0
        self._done = 0.0

    @contextmanager
    def process(self, own_seconds: float) -> Iterator[None]:
        """Learn from a process what it takes beside its own seconds."""
        began = time.monotonic()
        yield
        self.ran += 1
        self._beside += max(0.0, time.monotonic() - began - own_seconds)

    @property
    def _start_seconds(self) -> float:
        return self._beside / self.ran if self.ran else START_SECONDS

    @property
    def _taken(self) -> float:
        return time.monotonic() - self._began

    def share(self, left: int) -> float:
        """Return the seconds for which the next one measures, where so many are left to run."""
        most = self._seconds / (2 * self._processes)
        fit = (self._seconds - self._taken) / max(1, left) - self._start_seconds
        return max(min(LEAST_SECONDS, most), min(most, fit))

    def _seconds_of(self, count: int) -> float:
        """Return what so many more take."""
        return max(0, count) * (self._start_seconds + self.share(count))

    def done(self, left: int) -> float:
        """Return the fraction done, which never falls."""
        all_seconds = self._taken + self._seconds_of(left)
        self._done = max(self._done, min(0.99, self._taken / all_seconds if all_seconds else 0.0))
        return self._done

    def said(self, left: int) -> str:
        """Say how long it takes from here."""
        most = max(0.0, self._seconds - self._taken)
        if left <= 0:
            return f"at most {most:.0f} s left"
        about = self._seconds_of(left)
        return f"about {about:.0f} s left" + (f", at most {most:.0f} s" if most > about + 1 else "")

    def has_another(self) -> bool:
        """Say whether there is time for one more than the fewest."""
        return self._taken + self._seconds_of(1) <= self._seconds

    def has_retry(self, left: int) -> bool:
        """Say whether there is time for one in the place of another, and for the others."""
        return self._taken + self._seconds_of(left) <= MOST_OVER * self._seconds

    def too_short(self) -> str:
        """Say that the time asked for cannot be kept, and what can; empty if it can."""
        needed = self._taken + self._seconds_of(self._processes - self.ran)
        if needed <= MOST_OVER * self._seconds:
            return ""
        return (
            f"the {self._processes} processes take about {needed:.0f} s and not "
            f"{self._seconds:g} s, since each needs {self._start_seconds:.1f} s besides"
        )
