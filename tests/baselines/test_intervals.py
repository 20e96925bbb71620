"""Intervals over seeds: against textbook arithmetic, enumeration, and samples of known truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from baselines.analysis.intervals import estimate, median
from timing.statistics import median_coverage


@pytest.mark.slow
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.low is not None
    assert found.high is not None
    if np.std(values) > 1e-6:
        naive = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert found.low == pytest.approx(naive.low, rel=1e-6, abs=1e-9)
        assert found.high == pytest.approx(naive.high, rel=1e-6, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert str(estimate([1.5])) == "1.5000"
    assert (median([1.5]).median, median([1.5]).low, median([1.5]).high) == (1.5, None, None)


@pytest.mark.slow
@given(st.lists(st.floats(0.1, 1e3) | st.just(math.inf), min_size=2, max_size=30))
def test_the_interval_of_a_median_is_scipys_where_that_has_one(values: list[float]) -> None:
    found = median(values)
    assert found.median == sorted(values)[len(values) // 2]
    if len(values) < 6:
        assert (found.low, found.high) == (min(values), max(values))
    else:
        # By rank, for scipy cannot count with what is never.
        naive = stats.quantile_test(range(len(values)), p=0.5).confidence_interval(0.95)
        assert found.low == sorted(values)[naive.low]
        assert found.high == sorted(values)[naive.high]


@pytest.mark.parametrize("seeds", range(2, 13))
def test_the_coverage_of_a_median_is_that_of_all_its_cases(seeds: int) -> None:
    # Of each seed it is a fair coin whether it is above the true median.
    found = median(list(range(seeds)))
    assert found.low is not None
    assert found.high is not None
    held = sum(
        # The least of the interval is below it, and the greatest above.
        int(found.low) < seeds - sum(above) <= int(found.high)
        for above in itertools.product((0, 1), repeat=seeds)
    )
    assert median_coverage(seeds) == pytest.approx(held / 2**seeds)
    assert median_coverage(seeds) >= 0.95 or seeds < 6


def covered(intervals, truth: float) -> float:
    low, high = intervals
    return float(np.mean((low <= truth) & (truth <= high)))


def bootstrap(samples, statistic):
    """The ends of the percentile bootstrap's intervals, one a row of samples."""
    drawn = stats.bootstrap(
        (samples,),
        statistic,
        axis=1,
        n_resamples=999,
        method="percentile",
        random_state=np.random.default_rng(1),
        batch=50,
    )
    return drawn.confidence_interval


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "bootstrap_covers"), [(3, 0.75), (5, 0.84), (12, 0.90)])
def test_students_interval_covers_a_mean_and_the_bootstraps_does_not(
    seeds: int, bootstrap_covers: float
) -> None:
    samples = np.random.default_rng(0).normal(1.0, 0.3, (2000, seeds))
    student = [estimate(list(sample)) for sample in samples]
    ends = np.array([each.low for each in student]), np.array([each.high for each in student])
    assert covered(ends, 1.0) == pytest.approx(0.95, abs=0.015)
    assert covered(bootstrap(samples, np.mean), 1.0) == pytest.approx(bootstrap_covers, abs=0.02)


@pytest.mark.slow
def test_the_bootstrap_of_a_median_covers_less_than_the_order_statistics() -> None:
    samples = np.random.default_rng(0).exponential(1.0, (2000, 7))
    truth = math.log(2)
    ours = [median(list(sample)) for sample in samples]
    ends = np.array([each.low for each in ours]), np.array([each.high for each in ours])
    assert covered(ends, truth) == pytest.approx(median_coverage(7), abs=0.01)
    assert median_coverage(7) == pytest.approx(0.98, abs=0.005)
    assert covered(bootstrap(samples, np.median), truth) == pytest.approx(0.88, abs=0.02)
