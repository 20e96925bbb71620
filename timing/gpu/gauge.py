"""Sums over polled readings: of a quantity, and of power over time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Gauge:
    """Sums over the readings of one quantity; not available once a reading was refused."""

    count: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    refused: bool = False

    def add(self, reading: float | None) -> None:
        """Add a reading; None if it was refused."""
        if reading is None:
            self.refused = True
            return
        self.count += 1
        self.total += reading
        self.total_of_squares += reading**2
        self.lowest = min(self.lowest, reading)
        self.highest = max(self.highest, reading)

    @property
    def available(self) -> bool:
        """Return whether there are readings, and none was refused."""
        return self.count > 0 and not self.refused

    @property
    def mean(self) -> float | None:
        """Return the mean of the readings."""
        return self.total / self.count if self.available else None

    @property
    def min(self) -> float | None:
        """Return the least reading."""
        return self.lowest if self.available else None

    @property
    def max(self) -> float | None:
        """Return the greatest reading."""
        return self.highest if self.available else None

    @property
    def standard_error(self) -> float:
        """Return the standard error of the mean of two readings or more."""
        variance = (self.total_of_squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(max(0.0, variance) / self.count)


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
        """Return the area; None if a reading was refused."""
        return None if self._refused or self._latest is None else self._joules
