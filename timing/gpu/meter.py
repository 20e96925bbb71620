"""What the GPUs did over a span of work: active time, energy, clocks, throttling, memory.

    with GpuMeter() as meter:
        ...
    for use in meter.uses:
        print(use.model_dump_json())

NVML has no counter of GPU time: it has the share of a sample period in which a kernel was resident.
So the active time comes with its scope, its source and a bound on its error, and short spans are
refused. The cost of a step comes from CUDA events, see `timing.clocks.step_timer`.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from os import getpid
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from timing.gpu.nvml import THROTTLE_FIELDS, Device, ProcessShare, visible_devices

SHORTEST_WINDOW_SECONDS = 20.0
DEFAULT_POLL_SECONDS = 2.0
# The driver's buffer of samples may hold little more than this.
LONGEST_POLL_SECONDS = 5.0
# Marks of the performance monitor that are closer tell nothing, says NVIDIA.
MONITOR_PERIOD_SECONDS = 0.1
# Of the driver's utilisation samples: 1/6 to 1 s, and a tick of the clock.
LONGEST_PERIOD_SECONDS = 1.1
LARGEST_UNCOVERED_SHARE = 0.1
BOUND_SHARE = 0.005

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ActiveTime(BaseModel):
    """Time in which some kernel was resident on the GPU.

    Attributes:
        gpu_active_seconds: that time, within the span.
        bound_seconds: the error it may have: two sample periods and 0.5% of the span, and for
            "utilisation", which sees only a part of the span, two standard errors more.
        scope: "process" for this process alone, "device" for whoever used the device.
        source: where it is from. "accounting" and "performance monitor" are read at both ends,
            "samples" are drained from the driver's buffer, "utilisation" is looked at now and then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_active_seconds: Amount
    bound_seconds: Amount
    scope: Literal["process", "device"]
    source: Literal["accounting", "performance monitor", "samples", "utilisation"]


class GpuUse(BaseModel):
    """What one device did over a span; None is what could not be read, and `unavailable` says why.

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


class GpuMeter:
    """Measures the GPUs this process may use over one span; `with meter:` or `start()`, `stop()`.

    A thread polls them meanwhile; it ends with the span and never keeps the process alive. CUDA is
    not started. Without a GPU there is nothing in `uses`, and `unavailable` says why.

    Args:
        poll_seconds: time between polls, above 0 and at most 5: the driver keeps no more samples.

    Attributes:
        uses: what each device did over the latest span; empty before the first has ended.
        unavailable: which devices are not measured, and why; None if none is missing.
    """

    def __init__(self, poll_seconds: float = DEFAULT_POLL_SECONDS) -> None:
        if not 0 < poll_seconds <= LONGEST_POLL_SECONDS:
            raise ValueError(
                f"poll_seconds is above 0 and at most {LONGEST_POLL_SECONDS:g}; got {poll_seconds}"
            )
        self.uses: tuple[GpuUse, ...] = ()
        self.unavailable: str | None = None
        self._poll_seconds = poll_seconds
        self._spans: list[_Span] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin a span; raises RuntimeError inside another one."""
        if self._spans is not None:
            raise RuntimeError("this meter runs already: stop() it, or use another one")
        devices, self.unavailable = visible_devices()
        self.uses = ()
        self._spans = [_Span(device) for device in devices]
        if self._spans:
            self._ended = threading.Event()
            self._thread = threading.Thread(
                target=self._poll, args=(self._spans, self._ended), name="gpu-meter", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the span and fill `uses`; raises RuntimeError outside of one."""
        if self._spans is None:
            raise RuntimeError("this meter does not run: start() it first")
        spans, self._spans = self._spans, None
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.uses = tuple(span.end() for span in spans)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _poll(self, spans: list[_Span], ended: threading.Event) -> None:
        while not ended.wait(self._poll_seconds):
            for span in spans:
                span.poll()


def probe_gpus() -> tuple[dict[str, dict[str, str]], str | None]:
    """What can be measured of each visible GPU.

    Returns:
        For each device, by name and UUID, each quantity with "available" or the reason why it is
        not; and which devices are missing, or None.
    """
    devices, unavailable = visible_devices()
    return {str(device): _probe(device) for device in devices}, unavailable


def _probe(device: Device) -> dict[str, str]:
    mark = device.activity_mark()
    if mark is not None:
        device.free_mark(mark)
    device.process_share(getpid())
    device.utilisation_samples(time.time() - LONGEST_POLL_SECONDS)
    device.utilisation_percent()
    device.energy_joules()
    device.power_watts()
    device.sm_clock_mhz()
    device.memory_clock_mhz()
    device.temperature_celsius()
    device.memory_used_bytes()
    device.throttled_seconds()
    device.other_process_ids()
    asked = [
        "process accounting",
        "performance monitor",
        "utilisation samples",
        "utilisation",
        "energy counter",
        "power",
        "SM clock",
        "memory clock",
        "temperature",
        "memory",
        "throttled time",
        *(f"throttled time by {reason}" for reason in THROTTLE_FIELDS),
        "processes",
        "other processes",
    ]
    if "throttled time" in device.unavailable:
        asked = [quantity for quantity in asked if not quantity.startswith("throttled time by")]
    if "processes" in device.unavailable:
        asked.remove("other processes")
    return {
        quantity: f"not available: {device.unavailable[quantity]}"
        if quantity in device.unavailable
        else "available"
        for quantity in asked
    }


@dataclass
class _Polled:
    """Sums over the readings of one quantity; nothing is told of it once a reading was refused."""

    count: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    refused: bool = False

    def add(self, reading: float | None) -> None:
        if reading is None:
            self.refused = True
            return
        self.count += 1
        self.total += reading
        self.total_of_squares += reading**2
        self.lowest = min(self.lowest, reading)
        self.highest = max(self.highest, reading)

    @property
    def told(self) -> bool:
        return self.count > 0 and not self.refused

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.told else None

    @property
    def least(self) -> float | None:
        return self.lowest if self.told else None

    @property
    def most(self) -> float | None:
        return self.highest if self.told else None

    @property
    def standard_error(self) -> float:
        """Of the mean, for two readings or more."""
        variance = (self.total_of_squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(max(0.0, variance) / self.count)


class _Span:
    """One device between the begin and the end."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.polls = 0
        self.power = PowerIntegral()
        self.utilisation = _Polled()
        self.sm_clock = _Polled()
        self.memory_clock = _Polled()
        self.temperature = _Polled()
        self.memory = _Polled()
        self.samples = SampledActivity(time.time())
        self.others = device.other_process_ids()
        self.share = device.process_share(getpid())
        self.throttled = device.throttled_seconds()
        self.mark = device.activity_mark()
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
            sm_clock_min_mhz=self.sm_clock.least,
            memory_clock_mean_mhz=self.memory_clock.mean,
            memory_clock_min_mhz=self.memory_clock.least,
            temperature_max_celsius=self.temperature.most,
            memory_peak_bytes=None if self.memory.most is None else int(self.memory.most),
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
        """The active time by the first source that tells."""
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
            if self.mark is not None:
                self.device.free_mark(self.mark)
                self.mark = None
        if active is None:
            self.device.unavailable.setdefault("active time", "no source tells it")
        return active

    def _active_by_accounting(self, window: float) -> ActiveTime | None:
        share = self.device.process_share(getpid())
        if self.share is None or share is None:
            return None
        return active_by_accounting(self.share, share, window)

    def _active_by_monitor(self, window: float) -> ActiveTime | None:
        if self.mark is None:
            return None
        end = self.device.activity_mark()
        if end is None:
            return None
        percent = self.device.active_percent(self.mark, end)
        self.device.free_mark(end)
        if percent is None or not 0 <= percent <= 100:
            return None
        return ActiveTime(
            gpu_active_seconds=percent / 100 * window,
            bound_seconds=_bound(MONITOR_PERIOD_SECONDS, window),
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
            bound_seconds=_bound(window / (self.polls - 1), window) + error,
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


def active_by_accounting(
    begin: ProcessShare, end: ProcessShare, window_seconds: float
) -> ActiveTime | None:
    """This process's active time from what the driver counted for it at both ends of a span.

    Returns:
        The mean of the samples taken in the span times its length; None if there was no sample.
    """
    samples = end.samples - begin.samples
    percent_sum = end.percent_sum - begin.percent_sum
    if samples <= 0 or not 0 <= percent_sum <= 100 * samples:
        return None
    return ActiveTime(
        gpu_active_seconds=percent_sum / samples / 100 * window_seconds,
        bound_seconds=_bound(window_seconds / samples, window_seconds),
        scope="process",
        source="accounting",
    )


class SampledActivity:
    """The device's active time from the driver's utilisation samples, which come in batches.

    A sample's period begins where the one before ended, and is at most a second long: after a
    longer gap the samples between were lost.

    Args:
        begin_seconds: when the span began, since the epoch.

    Attributes:
        seen_seconds: the end of the newest sample; newer ones are to be added.
    """

    def __init__(self, begin_seconds: float) -> None:
        self._begin_seconds = begin_seconds
        self._first = True
        self._refused = False
        self._periods = 0
        self._period_seconds = 0.0
        self._covered_seconds = 0.0
        self._active_seconds = 0.0
        # Samples from before the begin tell where the first period in the span begins.
        self.seen_seconds = begin_seconds - LONGEST_POLL_SECONDS

    def add(self, samples: list[tuple[float, float]] | None) -> None:
        """Add a batch: end of period in seconds since the epoch, per cent; None if refused."""
        if samples is None:
            self._refused = True
            return
        for end, percent in samples:
            period = end - self.seen_seconds
            if period <= 0:
                continue
            if not self._first and period <= LONGEST_PERIOD_SECONDS:
                inside = max(0.0, end - max(self.seen_seconds, self._begin_seconds))
                self._covered_seconds += inside
                self._active_seconds += percent / 100 * inside
                self._period_seconds += period
                self._periods += 1
            self._first = False
            self.seen_seconds = end

    def active(self, window_seconds: float) -> ActiveTime | None:
        """The active time of a span of that length, with what no sample covers in its bound.

        Returns:
            None if samples were refused, or cover less than nine tenths.
        """
        uncovered = max(0.0, window_seconds - self._covered_seconds)
        if self._refused or uncovered > LARGEST_UNCOVERED_SHARE * window_seconds:
            return None
        # The newest period may end a clock's tick after the span.
        share = min(1.0, self._active_seconds / self._covered_seconds)
        period = self._period_seconds / self._periods
        return ActiveTime(
            gpu_active_seconds=share * window_seconds,
            bound_seconds=_bound(period, window_seconds) + uncovered,
            scope="device",
            source="samples",
        )


class PowerIntegral:
    """Energy as the area under the lines between readings of the power."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._latest: tuple[float, float] | None = None
        self._refused = False

    def add(self, seconds: float, watts: float | None) -> None:
        """Add a reading at a moment; None if it was refused, and then the energy is not told."""
        if watts is None:
            self._refused = True
            return
        if self._latest is not None:
            earlier, before = self._latest
            self._joules += (seconds - earlier) * (watts + before) / 2
        self._latest = (seconds, watts)

    @property
    def joules(self) -> float | None:
        """The area; None if a reading was refused."""
        return None if self._refused or self._latest is None else self._joules


def _bound(period_seconds: float, window_seconds: float) -> float:
    return 2 * period_seconds + BOUND_SHARE * window_seconds
