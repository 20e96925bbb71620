"""Active time of a GPU: what some kernel was resident for, from each source that tells of it.

NVML has no counter of GPU time: it has the share of a sample period in which a kernel was resident.
So the active time comes with its scope, its source and a bound on its error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from timing.gpu.nvml import ProcessShare

# The driver's buffer of samples may hold little more than this.
LONGEST_POLL_SECONDS = 5.0
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


def error_bound(period_seconds: float, window_seconds: float) -> float:
    """Return the error of an active time over a window that is seen in periods."""
    return 2 * period_seconds + BOUND_SHARE * window_seconds


def active_by_accounting(
    begin: ProcessShare, end: ProcessShare, window_seconds: float
) -> ActiveTime | None:
    """Return this process's active time from what the driver counted for it at both ends of a span.

    Returns:
        The mean of the samples taken in the span times its length; None if there was no sample.
    """
    samples = end.samples - begin.samples
    percent_sum = end.percent_sum - begin.percent_sum
    if samples <= 0 or not 0 <= percent_sum <= 100 * samples:
        return None
    return ActiveTime(
        gpu_active_seconds=percent_sum / samples / 100 * window_seconds,
        bound_seconds=error_bound(window_seconds / samples, window_seconds),
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
        """Return the active time of a span of that length, with what no sample covers in its bound.

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
            bound_seconds=error_bound(period, window_seconds) + uncovered,
            scope="device",
            source="samples",
        )
