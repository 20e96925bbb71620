"""One GPU between the begin and the end of a span of work."""

from __future__ import annotations

import time
from os import getpid
from typing import Literal

from pydantic import BaseModel, ConfigDict

from timing.gpu.active_time import (
    ActiveTime,
    Amount,
    SampledActivity,
    active_by_accounting,
    error_bound,
)
from timing.gpu.gauge import Gauge, PowerIntegral
from timing.gpu.nvml import THROTTLE_FIELDS, Device

SHORTEST_WINDOW_SECONDS = 20.0
# Samples of the performance monitor that are closer tell nothing, says NVIDIA.
MONITOR_PERIOD_SECONDS = 0.1


class GpuUse(BaseModel):
    """The use of one device over a span; None could not be read, and `unavailable` says why.

    Attributes:
        uuid: "GPU-…", or "MIG-…" of a MIG instance.
        name: the card's name.
        window_seconds: length of the span.
        active: the active time, by the best source the card offers.
        energy_joules: energy used by the whole device.
        energy_source: the card's counter, or the power drawn, polled and integrated.
        utilisation_mean_percent: mean of the polled utilisation.
        sm_clock_mean_mhz: mean of the polled clock of the multiprocessors.
        sm_clock_min_mhz: its least.
        memory_clock_mean_mhz: mean of the polled clock of the memory.
        memory_clock_min_mhz: its least.
        temperature_max_celsius: the hottest that was polled.
        memory_peak_bytes: the most memory polled in use, by all processes.
        throttled_seconds: how long the clocks were held down, by reason; may overlap.
        other_processes_begin: ids of other processes on the device at the begin.
        other_processes_end: the same at the end.
        polls: how often the polled quantities were read.
        unavailable: what is not available, and why; each once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str
    name: str
    window_seconds: Amount
    active: ActiveTime | None
    energy_joules: Amount | None
    energy_source: Literal["counter", "integrated power"] | None
    utilisation_mean_percent: Amount | None
    sm_clock_mean_mhz: Amount | None
    sm_clock_min_mhz: Amount | None
    memory_clock_mean_mhz: Amount | None
    memory_clock_min_mhz: Amount | None
    temperature_max_celsius: float | None
    memory_peak_bytes: int | None
    throttled_seconds: dict[str, Amount] | None
    other_processes_begin: tuple[int, ...] | None
    other_processes_end: tuple[int, ...] | None
    polls: int
    unavailable: tuple[str, ...]


class Span:
    """One device between the begin and the end."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.polls = 0
        self.power = PowerIntegral()
        self.utilisation = Gauge()
        self.sm_clock = Gauge()
        self.memory_clock = Gauge()
        self.temperature = Gauge()
        self.memory = Gauge()
        self.samples = SampledActivity(time.time())
        self.others = device.other_process_ids()
        self.share = device.process_share(getpid())
        self.throttled = device.throttled_seconds()
        self.sample = device.gpm_sample()
        self.joules = device.energy_joules()
        self.begin = time.perf_counter()
        self.poll()

    def poll(self) -> None:
        """Read what has no counter."""
        device = self.device
        self.polls += 1
        if self.joules is None:
            self.power.add(time.perf_counter(), device.power_watts())
        self.utilisation.add(device.utilisation_percent())
        self.sm_clock.add(device.sm_clock_mhz())
        self.memory_clock.add(device.memory_clock_mhz())
        self.temperature.add(device.temperature_celsius())
        self.memory.add(device.memory_used_bytes())
        self.samples.add(device.utilisation_samples(self.samples.seen_seconds))

    def end(self) -> GpuUse:
        """Read the counters again and sum up."""
        device = self.device
        self.poll()
        window = time.perf_counter() - self.begin
        joules, joules_source = self._energy()
        active = self._active(window)
        throttled = self._throttled(window)
        others = device.other_process_ids()
        return GpuUse(
            uuid=device.uuid,
            name=device.name,
            window_seconds=window,
            active=active,
            energy_joules=joules,
            energy_source=joules_source,
            utilisation_mean_percent=self.utilisation.mean,
            sm_clock_mean_mhz=self.sm_clock.mean,
            sm_clock_min_mhz=self.sm_clock.min,
            memory_clock_mean_mhz=self.memory_clock.mean,
            memory_clock_min_mhz=self.memory_clock.min,
            temperature_max_celsius=self.temperature.max,
            memory_peak_bytes=None if self.memory.max is None else int(self.memory.max),
            throttled_seconds=throttled,
            other_processes_begin=self.others,
            other_processes_end=others,
            polls=self.polls,
            unavailable=tuple(f"no {what}: {why}" for what, why in device.unavailable.items()),
        )

    def _energy(self) -> tuple[float | None, Literal["counter", "integrated power"] | None]:
        if self.joules is None:
            joules = self.power.joules
            return joules, None if joules is None else "integrated power"
        joules = self.device.energy_joules()
        if joules is None:
            return None, None
        if joules < self.joules:
            self.device.unavailable.setdefault("energy counter", "the driver reset it in the span")
            return None, None
        return joules - self.joules, "counter"

    def _throttled(self, window: float) -> dict[str, float] | None:
        after = self.device.throttled_seconds()
        seconds = throttled_between(self.throttled, after)
        for reason in THROTTLE_FIELDS:
            if reason in (self.throttled or {}) and reason in (after or {}):
                if reason not in seconds:
                    why = "the driver reset it in the span"
                elif seconds[reason] > 1.05 * window + 1:
                    why = f"it counted {seconds.pop(reason):.4g} s in {window:.4g} s"
                else:
                    continue
                self.device.unavailable.setdefault(f"throttled time by {reason}", why)
        return seconds or None

    def _active(self, window: float) -> ActiveTime | None:
        """Return the active time by the first source that tells."""
        try:
            if window < SHORTEST_WINDOW_SECONDS:
                self.device.unavailable["active time"] = (
                    f"a span of {window:.3g} s is too short for it: take "
                    f"{SHORTEST_WINDOW_SECONDS:g} s or more"
                )
                return None
            active = (
                self._active_by_accounting(window)
                or self._active_by_monitor(window)
                or self._active_by_samples(window)
                or self._active_by_utilisation(window)
            )
        finally:
            if self.sample is not None:
                self.device.gpm_free(self.sample)
                self.sample = None
        if active is None:
            self.device.unavailable.setdefault("active time", "no source tells it")
        return active

    def _active_by_accounting(self, window: float) -> ActiveTime | None:
        share = self.device.process_share(getpid())
        if self.share is None or share is None:
            return None
        return active_by_accounting(self.share, share, window)

    def _active_by_monitor(self, window: float) -> ActiveTime | None:
        if self.sample is None:
            return None
        end = self.device.gpm_sample()
        if end is None:
            return None
        percent = self.device.gpm_utilization(self.sample, end)
        self.device.gpm_free(end)
        if percent is None or not 0 <= percent <= 100:
            return None
        return ActiveTime(
            gpu_active_seconds=percent / 100 * window,
            bound_seconds=error_bound(MONITOR_PERIOD_SECONDS, window),
            scope="device",
            source="performance monitor",
        )

    def _active_by_samples(self, window: float) -> ActiveTime | None:
        active = self.samples.active(window)
        if active is None:
            why = "they leave too much of the span uncovered"
            self.device.unavailable.setdefault("utilisation samples", why)
        return active

    def _active_by_utilisation(self, window: float) -> ActiveTime | None:
        percent = self.utilisation.mean
        if percent is None or self.polls < 3:
            return None
        error = 2 * self.utilisation.standard_error / 100 * window
        return ActiveTime(
            gpu_active_seconds=percent / 100 * window,
            bound_seconds=error_bound(window / (self.polls - 1), window) + error,
            scope="device",
            source="utilisation",
        )


def throttled_between(
    before: dict[str, float] | None, after: dict[str, float] | None
) -> dict[str, float]:
    """Return seconds throttled between two reads of the counters, by each reason that both tell.

    A counter that went back was reset by the driver and tells nothing.
    """
    before, after = before or {}, after or {}
    return {
        reason: after[reason] - before[reason]
        for reason in before
        if reason in after and after[reason] >= before[reason]
    }
