"""A GPU on a clock of the test: what runs on it takes time there, and moves its counters."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.fake_nvml import FakeNvml
from timing.calibration import energy_meter

# Of the counter of energy, as of the slowest cards.
PERIOD_SECONDS = 0.1


class VirtualGpu:
    """The first of the fake library's devices, which this process uses."""

    def __init__(self, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, phase: float = 0.0) -> None:
        self.nvml = nvml
        # So many seconds after an update of the counter.
        self.seconds = phase
        self.joules = 1e6
        self.latest = ""
        self.ran = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(energy_meter, "uuids_in_use", lambda: ("aaaa",))
        monkeypatch.setattr("timing.calibration.measure.cpu_probe_seconds", lambda: 1e-4)
        self._tell(self.joules)

    def _tell(self, joules: float) -> None:
        self.nvml.set("energy", 1e3 * joules)

    def run(self, name: str, seconds: float, watts: float) -> None:
        """Run for so long at this power; the counter is renewed in its own time."""
        before = self.seconds
        self.seconds += seconds
        self.latest = name
        self.ran += 1
        renewed = self.seconds // PERIOD_SECONDS * PERIOD_SECONDS
        if renewed > before:
            self._tell(self.joules + (renewed - before) * watts)
        self.joules += seconds * watts

    def operation(self, name: str, seconds: float, watts: float) -> Callable[[], None]:
        """Return a call that runs for so long at this power."""
        return lambda: self.run(name, seconds, watts)
