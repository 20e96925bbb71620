"""Measured seconds: what the host's clocks say, beside what the account says."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Self

import psutil

from timing import limits


class Stopwatch:
    """Adds up the time spent in its blocks; `with watch:` or `start()` and `stop()`.

    For spans of a second or more: to begin and end takes some 50 microseconds, for psutil to read
    the load of others. `timing.clocks.step_timer.StepTimer` is for the steps inside.

    Attributes:
        wall_seconds: elapsed time of the blocks that have ended, even by an exception.
        cpu_seconds: processor time of this process in them, all threads together.
        other_cores: mean number of cores that other processes kept busy meanwhile, by psutil. It
            counts in hundredths of a second, so it says little of blocks under a second; some
            0.05 is a quiet machine. A process that this one starts, such as the worker of a data
            loader, is another process here; so is what a virtual machine's host gives to others.
            Of a process that is bound to some cores, these alone are looked at.
        stolen_cores: of these, what the host of a virtual machine gave to others (Linux).
        cores_elsewhere: mean number of cores that were busy among those on which this process may
            not run.

    Args:
        but_children: whether the processes that this one had started before the first block are
            no others.
    """

    def __init__(self, *, but_children: bool = False) -> None:
        self.wall_seconds = 0.0
        self.cpu_seconds = 0.0
        self._busy_seconds = 0.0
        self._stolen_seconds = 0.0
        self._elsewhere_seconds = 0.0
        self._but_children = but_children
        self._children: dict[psutil.Process, float] | None = None
        self._cores: frozenset[int] | None = None
        self._started: tuple[float, ...] | None = None

    def start(self) -> Self:
        """Start the clocks; raises RuntimeError if they run already."""
        if self._started is not None:
            raise RuntimeError("this stopwatch runs already: stop() it, or use another one")
        if self._children is None:
            mine = psutil.Process().children(recursive=True) if self._but_children else []
            self._children = dict.fromkeys(mine, 0.0)
        self._cores = limits.cores()
        self._started = self._clocks()
        return self

    def stop(self) -> None:
        """Stop and add up; raises RuntimeError if it does not run."""
        if self._started is None:
            raise RuntimeError("this stopwatch does not run: start() it first")
        now = self._clocks()
        wall, cpu, busy, stolen, elsewhere = (
            end - begin for end, begin in zip(now, self._started, strict=True)
        )
        self.wall_seconds += wall
        self.cpu_seconds += cpu
        self._busy_seconds += busy
        self._stolen_seconds += stolen
        self._elsewhere_seconds += elsewhere
        self._started = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def other_cores(self) -> float:
        """Return the cores kept busy by others, see above; 0 before anything was measured."""
        if self.wall_seconds == 0:
            return 0.0
        return max(0.0, (self._busy_seconds - self.cpu_seconds) / self.wall_seconds)

    @property
    def stolen_cores(self) -> float:
        """Return the cores that the host gave to others, see above; 0 before any measurement."""
        return self._stolen_seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def cores_elsewhere(self) -> float:
        """Return the busy cores that are not ours, see above; 0 before any measurement."""
        return max(0.0, self._elsewhere_seconds) / (self.wall_seconds or 1.0)

    def _clocks(self) -> tuple[float, ...]:
        """Return seconds: wall, of this process, busy but for children, stolen, elsewhere."""
        busy = stolen = elsewhere = 0.0
        for times, ours in self._processor_times():
            if ours:
                busy += _busy(times)
                stolen += getattr(times, "steal", 0.0)
            else:
                elsewhere += _busy(times)
        busy -= self._children_seconds()
        return time.perf_counter(), time.process_time(), busy, stolen, elsewhere

    def _processor_times(self) -> list[tuple[Any, bool]]:
        """Return what psutil says of the whole machine, or of each core, and whether it is ours."""
        if self._cores is not None:
            each = psutil.cpu_times(percpu=True)
            numbers = limits.online_cores()
            # One may be switched on or off at any moment.
            if len(each) == len(numbers):
                return [(times, n in self._cores) for times, n in zip(each, numbers, strict=True)]
        return [(psutil.cpu_times(), True)]

    def _children_seconds(self) -> float:
        """Return processor time of the children left out; of one that ended, what it last had."""
        children = self._children or {}
        for child in children:
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                children[child] = times.user + times.system
        return sum(children.values())


def _busy(times: Any) -> float:
    busy = float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
    # Linux counts a guest's time in `user` and `nice` already.
    return busy - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
