"""Meters of joules: of the GPUs that this process uses, or else of the host's processors."""

from __future__ import annotations

import time

import torch

from timing.calibration.disturbance import LARGEST_OTHER_CORES, LARGEST_THROTTLED_SHARE, Noise
from timing.calibration.row import Burst
from timing.clocks.host_energy import HostEnergy
from timing.gpu.nvml import Device
from timing.gpu.span import throttled_between
from timing.gpu.visible_devices import visible_devices

MAX_ERROR = 0.02
# Between two updates of a counter, at the most.
GPU_PERIOD_SECONDS = 0.1
PROCESSORS_PERIOD_SECONDS = 0.005
# Held back by these a device draws less than it would; the others are how the machine is set.
HEAT = ("software thermal slowdown", "hardware thermal slowdown", "hardware power brake")


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

    def others_in(self, noise: Noise) -> str:
        """Return which others used the same devices; empty where none did, as far as is told."""
        if self._devices:
            count = noise.gpu_processes
            return f"{count} other process(es) had work on a GPU" if count else ""
        if noise.other_cores <= LARGEST_OTHER_CORES:
            return ""
        return f"other processes kept {noise.other_cores:.1f} cores busy"


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
