"""Joules of operations, by the counters of the GPUs in use, or else of the host's processors.

A counter is renewed every 20 to 100 ms, so a reading is right to 2% over 5 s or more, and no single
run of an operation can be read. The watts can: each operation runs again and again for that long,
waiting for the GPU as where its seconds were taken. Its joules are these watts times its charged
seconds, which come from the loop, for in a burst it may run faster, from the cache. What the watts
add up to is held against those of the loop itself, read meanwhile.

Where there is no time for all operations none is read; where a counter fails, those are kept that
were read before it did, and nothing is made up for the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict

from timing.calibration.disturbance import Noise, NoiseWatch
from timing.calibration.energy_meter import Meter, find_meter
from timing.calibration.row import Burst, Energy

# Of all seconds of a calibration.
SHARE = 0.5


class EnergyShare(BaseModel):
    """The part of a calibration's readings that one process takes.

    Attributes:
        seconds: that it may take.
        processes: that are left to run, with this one.
        read: how often each operation was read by those before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    processes: int
    read: dict[str, int] = {}


def read_joules(
    meter: Meter,
    runs: Mapping[str, Callable[[], object]],
    seconds: Mapping[str, float],
    share: EnergyShare,
    say: Callable[[str], None],
) -> dict[str, Burst]:
    """Return bursts of operations, of those first that were read the least before.

    Args:
        meter: of what they run on.
        runs: operations by name, each of which ends once its work is done.
        seconds: that each takes.
        share: of this process.
        say: told what is not read, and why.
    """
    took = {name: _seconds_of(meter, each) for name, each in seconds.items()}
    missing = [name for name in runs if not share.read.get(name)]
    # That of this process, so that those that are left come to all.
    quota = math.fsum(took[name] for name in missing) / share.processes
    if quota > share.seconds:
        asked = math.ceil(math.fsum(took.values()) / SHARE)
        say(
            f"no joules: to read {len(missing)} operations takes {quota * share.processes:.0f} s, "
            f"in which no seconds are measured: give --seconds {asked} or more"
        )
        return {}
    found: dict[str, Burst] = {}
    spent = 0.0
    for name in sorted(runs, key=lambda name: share.read.get(name, 0)):
        if spent >= quota and spent + took[name] > share.seconds:
            continue
        spent += took[name]
        burst = _burst(meter, runs[name])
        if burst is None:
            say(f"{meter.unavailable}, while {name} ran")
            break
        if held_back := meter.held_back():
            say(f"no joules of {name}: {held_back}, so they are left out")
            continue
        found[name] = burst
    return found


def _seconds_of(meter: Meter, seconds: float) -> float:
    """Return what it takes to read an operation of so many seconds."""
    return max(meter.burst_seconds, seconds) + max(meter.period_seconds, seconds)


def _burst(meter: Meter, run: Callable[[], object]) -> Burst | None:
    # First for a period, since the counter may be late by one, and is not to tell of what was
    # before.
    _run_for(meter.period_seconds, run)
    meter.begin()
    _run_for(meter.burst_seconds, run)
    return meter.end()


def _run_for(seconds: float, run: Callable[[], object]) -> None:
    end = time.perf_counter() + seconds
    run()
    while time.perf_counter() < end:
        run()


class LoopEnergy:
    """Reads the joules of the loop in which seconds are measured, and then those of operations.

    Args:
        say: told what is not read, and why.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._meter: Meter | None = None
        self._loop: Burst | None = None
        self._counts: dict[str, int] = {}

    def begin(self) -> None:
        """Begin to read, once all operations have run: what they run on is known by then."""
        found = find_meter()
        if isinstance(found, str):
            self._say(f"no joules: {found}")
            return
        self._meter = found
        found.begin()

    def end(self, counts: Mapping[str, int]) -> None:
        """End the loop, in which each operation ran so often."""
        if self._meter is None:
            return
        self._counts = dict(counts)
        self._loop = self._meter.end()
        if self._loop is None:
            self._say(self._meter.unavailable)

    def energy(
        self,
        runs: Mapping[str, Callable[[], object]],
        seconds: Mapping[str, float],
        share: EnergyShare,
        noise: Noise,
    ) -> Energy | None:
        """Return what this process tells of the joules of operations; None if that is nothing.

        A loop that was too short for its joules to be right to 2% is left out.

        Args:
            runs: operations by name, each of which ends once its work is done.
            seconds: that each takes.
            share: of this process in the readings.
            noise: of the loop.
        """
        meter = self._meter
        if meter is None or self._loop is None:
            return None
        bursts: dict[str, Burst] = {}
        if not (others := meter.others_in(noise)):
            with NoiseWatch() as watch:
                bursts = read_joules(meter, runs, seconds, share, self._say)
            others = meter.others_in(watch.noise())
        if others:
            self._say(f"no joules, since they would be of others too: {others}")
        if others or not bursts:
            return None
        is_known = self._loop.seconds >= meter.burst_seconds
        return Energy(
            of=meter.of,
            period_seconds=meter.period_seconds,
            bursts=bursts,
            loop=self._loop if is_known else None,
            loop_counts=self._counts if is_known else {},
        )
