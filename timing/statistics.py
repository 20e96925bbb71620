"""Intervals for reference system time: how much of it is chance in how the profile was measured.

The uncertainty lies between processes, not between the steps of one: an interval from all samples
pooled covers the truth a third of the time, one from the processes as often as it says. So each
process gives one total, and Student's t over these totals gives the interval. The two totals of a
ratio are taken from the same process, so that an error common to them cancels.

The closure, how far the medians are from adding up to a real loop, is no chance: it does not
become less with more processes. So it is reported beside the interval, not in it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import stdtrit

from timing.rst.policy import uncharged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from timing.calibration.profile import Calibration, Profile
    from timing.rst.policy import Policy


@dataclass(frozen=True)
class Interval:
    """An estimate with its t-interval over fresh processes.

    Attributes:
        estimate: the processes' mean; of ratios, their geometric mean.
        low: lower end, 0 if there was one process only, which says nothing of chance.
        high: upper end, infinite if there was one process only.
        confidence: with which it covers the truth.
        processes: how many it rests on; of two profiles, the fewer.
        closure: of the profile: how far its single timings were from adding up, the systematic
            part, which the interval does not hold. None for two profiles.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    processes: int
    closure: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the estimate; where that is 0, in seconds."""
        return (self.high - self.low) / 2 / (self.estimate or 1.0)

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def rst_interval(
    counts: Mapping[str, float],
    profile: Profile,
    policy: Policy = "algoperf",
    confidence: float = 0.95,
) -> Interval:
    """Reference seconds of operations, with the chance in the profile's costs.

    Args:
        counts: how often each operation ran, such as `account.counts`.
        profile: the one they are charged by.
        policy: which of them are charged.
        confidence: of the interval.

    Raises:
        KeyError: an operation has no cost.
        ValueError: there is no such policy, or the confidence is not between 0 and 1.
    """
    totals = [_total(counts, process, policy) for process in profile.processes]
    mean = statistics.fmean(totals)
    half = _half_width(totals, confidence)
    return Interval(
        mean, max(0.0, mean - half), mean + half, confidence, len(totals), profile.closure
    )


def ratio_interval(
    counts_a: Mapping[str, float],
    counts_b: Mapping[str, float],
    profile: Profile,
    policy: Policy = "algoperf",
    confidence: float = 0.95,
) -> Interval:
    """RST of `counts_a` over that of `counts_b`, under one profile: two methods, for example.

    What makes all operations of a process slower alike cancels.

    Raises:
        KeyError: an operation has no cost.
        ValueError: as for `rst_interval`, or nothing is charged in one of them.
    """
    logs = []
    for process in profile.processes:
        a, b = _total(counts_a, process, policy), _total(counts_b, process, policy)
        if a == 0 or b == 0:
            raise ValueError(f"no ratio: nothing is charged in one of the two under {policy!r}")
        logs.append(math.log(a / b))
    mean, half = statistics.fmean(logs), _half_width(logs, confidence)
    return _of_logs(mean, half, confidence, len(logs), profile.closure)


def operation_ratio(operation: str, a: Profile, b: Profile, confidence: float = 0.95) -> Interval:
    """Charged seconds of an operation in `b` over those in `a`: machines measured independently.

    Welch's t-interval of the logarithms.

    Raises:
        KeyError: one of the profiles does not have the operation.
    """
    logs = [
        [math.log(process.seconds[operation]) for process in profile.processes]
        for profile in (a, b)
    ]
    mean = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    fewer = min(map(len, logs))
    if fewer < 2:
        return _of_logs(mean, math.inf, confidence, fewer, None)
    parts = [statistics.variance(values) / len(values) for values in logs]
    error = math.sqrt(sum(parts))
    if error == 0:
        return _of_logs(mean, 0.0, confidence, fewer, None)
    degrees = error**4 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True)
    )
    half = _quantile(degrees, confidence) * error
    return _of_logs(mean, half, confidence, fewer, None)


def _total(counts: Mapping[str, float], process: Calibration, policy: Policy) -> float:
    left_out = uncharged(policy)
    charged = process.seconds
    for operation in counts:
        if operation not in charged:
            raise KeyError(f"{operation!r} has no cost on the reference machine")
    return math.fsum(
        charged[operation] * times
        for operation, times in counts.items()
        if operation not in left_out
    )


def _half_width(values: Sequence[float], confidence: float) -> float:
    if len(values) < 2:
        return math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return _quantile(len(values) - 1, confidence) * error


def _quantile(degrees: float, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is between 0 and 1: {confidence!r}")
    return float(stdtrit(degrees, (1 + confidence) / 2))


def _of_logs(
    mean: float, half: float, confidence: float, processes: int, closure: float | None
) -> Interval:
    low, estimate, high = (_exp(mean + shift) for shift in (-half, 0.0, half))
    return Interval(estimate, low, high, confidence, processes, closure)


def _exp(log: float) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf
