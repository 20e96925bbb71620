"""Confidence intervals of a mean, a ratio and a median, by scipy.

None is a bootstrap, for that covers too little of so few: its percentile interval of a mean holds
the truth in 75% of samples of three, 84% of five and 90% of twelve where Student's t holds it in
95%; and that of a median in 88% of samples of seven, where the order statistics hold it in 98%.
`tests/baselines/test_intervals.py` measures this.

scipy.stats is imported where it is used: it takes 0.4 s, and most commands need no interval.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, which is infinite where one value was all.

    Attributes:
        estimate: the mean, ratio or median.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Return half of the interval as a share of the estimate; where that is 0, in its unit."""
        return (self.high - self.low) / 2 / (self.estimate or 1.0)

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return Student's t-interval of the mean; values must be finite.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    from scipy import stats

    _check(confidence)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def prediction_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return where one more value is to be expected, by Student's t; two values or more.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    mean = mean_interval(values, confidence)
    half = (mean.high - mean.low) / 2 * math.sqrt(len(values) + 1)
    return Interval(mean.estimate, mean.estimate - half, mean.estimate + half)


def ratio_interval(
    a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Return the ratio of b's geometric mean to a's, by Welch's t-interval of the logarithms.

    Raises:
        ValueError: the confidence is not between 0 and 1, or a value is not above zero.
    """
    from scipy import stats

    _check(confidence)
    logs_a, logs_b = ([math.log(value) for value in values] for values in (a, b))
    ratio = _exp(statistics.fmean(logs_b) - statistics.fmean(logs_a))
    if min(len(a), len(b)) < 2:
        return Interval(ratio, 0.0, math.inf)
    if not (statistics.variance(logs_a) or statistics.variance(logs_b)):
        return Interval(ratio, ratio, ratio)
    with warnings.catch_warnings():
        # It warns of a sample whose values are all alike, though its variance of 0 is right.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(logs_b, logs_a, equal_var=False)
    ends = test.confidence_interval(confidence)
    return Interval(ratio, _exp(float(ends.low)), _exp(float(ends.high)))


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the sign test's interval of the median, whatever the distribution.

    The median is the later one of an even number, so that nothing is averaged with an infinite
    value. Where so few values cannot cover it with this confidence (five or fewer, for 95%), the
    interval is from the least value to the greatest; `median_coverage` says how often that holds.
    """
    ordered = sorted(values)
    low, high = _median_ranks(len(ordered), confidence)
    return Interval(statistics.median_high(ordered), ordered[low], ordered[high])


def median_coverage(count: int, confidence: float = CONFIDENCE) -> float:
    """Return how often `median_interval` of so many values, two or more, covers the median."""
    from scipy import stats

    low, high = _median_ranks(count, confidence)
    below = stats.binom(count, 0.5).cdf
    # How many values are below the median is a fair coin's count: above `low`, up to `high`.
    return float(below(high) - below(low))


def interquartile_range(samples: Sequence[float]) -> float:
    """Return how far the quartiles of two or more samples are apart."""
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low


def _median_ranks(count: int, confidence: float) -> tuple[int, int]:
    """Return the places, among so many values in order, of the ends of the median's interval."""
    from scipy import stats

    _check(confidence)
    # Of the ranks, for scipy cannot count with infinite values.
    found = stats.quantile_test(range(count), p=0.5).confidence_interval(confidence)
    if math.isnan(found.low) or math.isnan(found.high):
        return 0, count - 1
    return int(found.low), int(found.high)


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is between 0 and 1: {confidence!r}")


def _exp(log: float) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf
