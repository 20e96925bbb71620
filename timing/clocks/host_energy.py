"""The energy of the host's processors over a span of work, by their own counters (RAPL, Linux).

It is of all processors and of their memory, whoever used them. The counters are read at both ends
and once a minute between, since they wrap around. Since 2020 most systems let root alone read them.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

FOLDER = Path("/sys/class/powercap")
POLL_SECONDS = 60.0
# No socket draws more. A counter that may have come round twice between two reads tells nothing.
MOST_WATTS = 2000.0


class _Reading(NamedTuple):
    seconds: float
    microjoules: dict[Path, int]


class HostEnergy:
    """Measures the processors over one span: `with energy:` or `start()` and `stop()`.

    It never raises for what cannot be read: then `joules` is None, and `unavailable` says why.

    Args:
        folder: where the system shows the counters.

    Attributes:
        joules: over the latest span; None before its end, or where they are not told.
        unavailable: why they are not.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.joules: float | None = None
        self.unavailable: str | None = None
        self._folder = folder
        self._ranges: dict[Path, int] = {}
        self._latest: _Reading | None = None
        self._microjoules = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin a span."""
        self.joules, self.unavailable, self._microjoules = None, None, 0
        self._latest = None
        try:
            self._ranges = {
                domain: int((domain / "max_energy_range_uj").read_text())
                for domain in _domains(self._folder)
            }
            self._latest = self._read()
        except (OSError, ValueError) as error:
            self.unavailable = _said(error)
            return self
        if not self._ranges:
            self.unavailable = (
                f"no joules of the processors: {self._folder} has no counter, as in a virtual "
                "machine or a container"
            )
            return self
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, args=(self._ended,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the span."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        self._add()
        if self.unavailable is None:
            self.joules = self._microjoules / 1e6

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _poll(self, ended: threading.Event) -> None:
        while not ended.wait(POLL_SECONDS):
            self._add()

    def _read(self) -> _Reading:
        counters = {domain: int((domain / "energy_uj").read_text()) for domain in self._ranges}
        return _Reading(time.perf_counter(), counters)

    def _add(self) -> None:
        """Add what was used since the latest reading."""
        if self.unavailable is not None or self._latest is None:
            return
        try:
            now = self._read()
        except (OSError, ValueError) as error:
            self.unavailable = _said(error)
            return
        elapsed = now.seconds - self._latest.seconds
        for domain, microjoules in now.microjoules.items():
            used = microjoules - self._latest.microjoules[domain]
            if used < 0:
                used += self._ranges[domain]
            possible = 1e6 * MOST_WATTS * (elapsed + 1)
            if used < 0 or used > possible or possible > self._ranges[domain] + used:
                self.unavailable = (
                    f"no joules of the processors: the counter {domain.name} was reset, or may "
                    f"have come round twice in {elapsed:.3g} s"
                )
                return
            self._microjoules += used
        self._latest = now


def _domains(folder: Path) -> list[Path]:
    """Return the counters of processors and of their memory; cores are part of a processor."""
    found = []
    for domain in sorted(folder.glob("intel-rapl:*")):
        name = (domain / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            found.append(domain)
    return found


def _said(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else str(error)
    remedy = "; root may read them" if isinstance(error, PermissionError) else ""
    return f"no joules of the processors: their counters cannot be read ({why}){remedy}"
