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

import torch
from pydantic import BaseModel, ConfigDict

from timing.calibration.disturbance import LARGEST_THROTTLED_SHARE, NoiseWatch
from timing.calibration.row import Burst, Energy
from timing.clocks.host_energy import HostEnergy
from timing.gpu.nvml import Device
from timing.gpu.span import throttled_between
from timing.gpu.visible_devices import visible_devices

MAX_ERROR = 0.02
# Between two updates of a counter, at the most.
GPU_PERIOD_SECONDS = 0.1
PROCESSORS_PERIOD_SECONDS = 0.001
# Of all seconds of a calibration.
SHARE = 0.5
# Held back by these a device draws less than it would; the others are how the machine is set.
HEAT = ("software thermal slowdown", "hardware thermal slowdown", "hardware power brake")


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


class Meter:
    """Reads the joules of whole devices: one meter for all that this process uses.

    Args:
        devices: GPUs; the host's processors, if there is none.

    Attributes:
        of: whose joules they are.
        period_seconds: between two updates of a counter, at the most.
        unavailable: why the latest reading failed.
    """

    def __init__(self, devices: tuple[Device, ...] = ()) -> None:
        self.of = " and ".join(device.name for device in devices) or "the processors"
        self.period_seconds = GPU_PERIOD_SECONDS if devices else PROCESSORS_PERIOD_SECONDS
        self.unavailable = ""
        self._devices = devices
        self._host = HostEnergy()
        self._before: list[float | None] = []
        self._throttled: list[dict[str, float] | None] = []
        self._began = 0.0

    @property
    def burst_seconds(self) -> float:
        """Return how long a reading takes to be right to 2%."""
        return self.period_seconds / MAX_ERROR

    def begin(self) -> None:
        """Read the counters."""
        if self._devices:
            self._throttled = [device.throttled_seconds() for device in self._devices]
            self._before = [device.energy_joules() for device in self._devices]
        else:
            self._host.start()
        self._began = time.perf_counter()

    def end(self) -> Burst | None:
        """Return what was used since; None where that is not told, and `unavailable` says why."""
        if self._devices:
            joules, self.unavailable = self._of_devices()
        else:
            self._host.stop()
            joules, self.unavailable = self._host.joules, self._host.unavailable or ""
        seconds = time.perf_counter() - self._began
        if joules is not None and not joules > 0:
            self.unavailable = (
                f"no joules of {self.of}: the counter stood still for {seconds:.3g} s"
            )
        return None if self.unavailable or joules is None else Burst(joules=joules, seconds=seconds)

    def _of_devices(self) -> tuple[float | None, str]:
        total = 0.0
        for device, before in zip(self._devices, self._before, strict=True):
            now = device.energy_joules()
            if before is None or now is None:
                why = device.unavailable.get("energy counter", "it told nothing")
                return None, f"no joules of {device}: no energy counter: {why}"
            if now < before:
                return None, f"no joules of {device}: its counter stepped back: the driver reset it"
            total += now - before
        return total, ""

    def held_back(self) -> str:
        """Return by what the latest reading was held back for long; empty if by nothing."""
        seconds = time.perf_counter() - self._began
        for device, before in zip(self._devices, self._throttled, strict=True):
            found = throttled_between(before, device.throttled_seconds())
            for reason in HEAT:
                if found.get(reason, 0.0) > LARGEST_THROTTLED_SHARE * seconds:
                    return f"{device} was held back by {reason}"
        return ""


def uuids_in_use() -> tuple[str, ...]:
    """Return the UUIDs, as CUDA has them, of the GPUs on which this process has put something."""
    if not torch.cuda.is_initialized():
        return ()
    used = filter(torch.cuda.memory_reserved, range(torch.cuda.device_count()))
    return tuple(str(torch.cuda.get_device_properties(index).uuid) for index in used)


def names_of(uuids: tuple[str, ...]) -> list[str]:
    """Return how NVML may call devices: as whole cards, or as MIG instances."""
    return [f"{kind}-{uuid}" for uuid in uuids for kind in ("GPU", "MIG")]


def find_meter() -> Meter | str:
    """Return the meter of what this process computes on by now, or why there is none."""
    used = uuids_in_use()
    if not used:
        return Meter()
    devices, unavailable = visible_devices()
    found = tuple(device for device in devices if device.uuid in names_of(used))
    if len(found) < len(used):
        return unavailable or "NVML does not know every GPU that is in use"
    return Meter(found)


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
    ) -> Energy | None:
        """Return what this process tells of the joules of operations; None if that is nothing.

        A loop that was too short for its joules to be right to 2% is left out.

        Args:
            runs: operations by name, each of which ends once its work is done.
            seconds: that each takes.
            share: of this process in the readings.
        """
        meter = self._meter
        if meter is None or self._loop is None:
            return None
        with NoiseWatch() as watch:
            bursts = read_joules(meter, runs, seconds, share, self._say)
        # Of what held a device back each burst has told.
        if bursts and (warnings := watch.noise(throttled_share=0.0).warnings):
            self._say(f"no joules, since they would be of others too: {warnings[0]}")
            return None
        if not bursts:
            return None
        is_known = self._loop.seconds >= meter.burst_seconds
        return Energy(
            of=meter.of,
            period_seconds=meter.period_seconds,
            bursts=bursts,
            loop=self._loop if is_known else None,
            loop_counts=self._counts if is_known else {},
        )
