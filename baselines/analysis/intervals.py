"""The interval of a mean over a few seeds, and of a median some of which are "never".

`timing.statistics` computes them and says why neither is a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timing.statistics import CONFIDENCE, mean_interval, median_interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its t-interval, of 95% if not asked otherwise; None from one seed."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {(self.high - self.low) / 2:.4f}"


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return mean and interval of one value a seed; values must be finite."""
    found = mean_interval(values, confidence)
    if len(values) < 2:
        return Estimate(found.estimate, None, None)
    return Estimate(found.estimate, found.low, found.high)


@dataclass(frozen=True)
class Median:
    """A median over seeds with its interval between two of them; infinite values are "never".

    Attributes:
        median: the later one of an even number, so that nothing is averaged with a miss.
        low, high: ends of the interval; None from one seed.
    """

    median: float
    low: float | None
    high: float | None


def median(values: Sequence[float]) -> Median:
    """Return median and interval of one value a seed, infinite where it is never."""
    found = median_interval(values)
    if len(values) < 2:
        return Median(found.estimate, None, None)
    return Median(found.estimate, found.low, found.high)
