"""A meter of the GPUs over a span of work: active time, energy, clocks, throttling, memory.

    with GpuMeter() as meter:
        ...
    for use in meter.uses:
        print(use.model_dump_json())

Short spans are refused an active time, see `timing.gpu.active_time`. The cost of a step comes from
CUDA events, see `timing.clocks.step_timer`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from os import getpid
from typing import Self

from timing.gpu.active_time import LONGEST_POLL_SECONDS
from timing.gpu.nvml import THROTTLE_FIELDS, Device
from timing.gpu.span import GpuUse, Span
from timing.gpu.visible_devices import visible_devices

DEFAULT_POLL_SECONDS = 2.0


class GpuMeter:
    """Measures the GPUs this process may use over one span; `with meter:` or `start()`, `stop()`.

    A thread polls them meanwhile; it ends with the span and never keeps the process alive. CUDA is
    not started. Without a GPU there is nothing in `uses`, and `unavailable` says why.

    Args:
        poll_seconds: time between polls, above 0 and at most 5: the driver keeps no more samples.
        uuids: of the devices that are measured; all that this process may use, if None.

    Attributes:
        uses: what each device did over the latest span; empty before the first has ended.
        unavailable: which devices are not measured, and why; None if none is missing.
    """

    def __init__(
        self, poll_seconds: float = DEFAULT_POLL_SECONDS, uuids: Collection[str] | None = None
    ) -> None:
        if not 0 < poll_seconds <= LONGEST_POLL_SECONDS:
            raise ValueError(
                f"poll_seconds is above 0 and at most {LONGEST_POLL_SECONDS:g}; got {poll_seconds}"
            )
        self.uses: tuple[GpuUse, ...] = ()
        self.unavailable: str | None = None
        self._poll_seconds = poll_seconds
        self._uuids = uuids
        self._spans: list[Span] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin a span; raises RuntimeError inside another one."""
        if self._spans is not None:
            raise RuntimeError("this meter runs already: stop() it, or use another one")
        devices, self.unavailable = visible_devices()
        if self._uuids is not None:
            devices = tuple(device for device in devices if device.uuid in self._uuids)
            if not devices and self.unavailable is None:
                self.unavailable = f"NVML knows no device {' or '.join(self._uuids)}"
        self.uses = ()
        self._spans = [Span(device) for device in devices]
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

    def _poll(self, spans: list[Span], ended: threading.Event) -> None:
        while not ended.wait(self._poll_seconds):
            for span in spans:
                span.poll()


def probe_gpus() -> tuple[dict[str, dict[str, str]], str | None]:
    """Return what can be measured of each visible GPU.

    Returns:
        For each device, by name and UUID, each quantity with "available" or the reason why it is
        not; and which devices are missing, or None.
    """
    devices, unavailable = visible_devices()
    return {str(device): _probe(device) for device in devices}, unavailable


def _probe(device: Device) -> dict[str, str]:
    sample = device.gpm_sample()
    if sample is not None:
        device.gpm_free(sample)
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
