"""Intervals over processes: their arithmetic, and how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.support.profiles import process, profile_of
from timing import Interval, rst_interval
from timing.calibration.uncertainty import operation_ratio

ROWS = [
    {"train_step": 0.0100, "collect": 0.0011, "evaluate": 1.0},
    {"train_step": 0.0103, "collect": 0.0010, "evaluate": 2.0},
    {"train_step": 0.0098, "collect": 0.0012, "evaluate": 1.5},
    {"train_step": 0.0101, "collect": 0.0011, "evaluate": 1.1},
]
COUNTS = {"train_step": 100, "collect": 20, "evaluate": 3}


ADDITIVITY_ERRORS = (-0.04, 0.02, -0.01, -0.03)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_rst_has_students_interval_over_the_processes() -> None:
    profile = profile_of(ROWS)
    totals = [100 * row["train_step"] + 20 * row["collect"] for row in ROWS]
    found = rst_interval(COUNTS, profile, confidence=0.9)
    naive = stats.ttest_1samp(totals, 0.0).confidence_interval(0.9)
    assert found.estimate == pytest.approx(np.mean(totals), rel=1e-12)
    assert ends(found) == pytest.approx((naive.low, naive.high), rel=1e-9)
    assert found.half_width == pytest.approx((naive.high - naive.low) / 2 / np.mean(totals))
    everything = rst_interval(COUNTS, profile, "mlperf")
    assert everything.estimate == pytest.approx(np.mean(totals) + 3 * 1.4)


def test_of_nothing_charged_nothing_is_chance() -> None:
    for counts in ({}, {"evaluate": 3}):
        assert rst_interval(counts, profile_of(ROWS)).half_width == 0
        # One process says nothing of chance.
        assert rst_interval(counts, profile_of(ROWS[:1])).half_width == math.inf


def test_additivity_errors_are_beside_an_interval_and_move_none() -> None:
    apart = profile_of([process(row, c) for row, c in zip(ROWS, ADDITIVITY_ERRORS, strict=True)])
    assert apart.additivity_error == pytest.approx(-0.02)
    assert rst_interval(COUNTS, apart) == rst_interval(COUNTS, profile_of(ROWS))


def test_machines_are_compared_by_welchs_interval() -> None:
    here = profile_of(ROWS)
    there = profile_of([{"train_step": 0.005 * (1 + i / 50)} for i in range(6)])
    logs = [[math.log(row["train_step"]) for row in ROWS]]
    logs.append([math.log(0.005 * (1 + i / 50)) for i in range(6)])
    naive = stats.ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    found = operation_ratio("train_step", here, there)
    assert ends(found) == pytest.approx((math.exp(naive.low), math.exp(naive.high)), rel=1e-9)


def test_costs_without_spread_have_a_ratio_without_width() -> None:
    a, b = (profile_of([{"step": seconds}] * 3) for seconds in (0.01, 0.02))
    found = operation_ratio("step", a, b)
    assert ends(found) == (found.estimate, found.estimate) == pytest.approx((2, 2))
    # One of them alone is no reason for scipy to warn.
    half = operation_ratio("train_step", profile_of(ROWS), profile_of([{"train_step": 0.005}] * 2))
    assert half.low < 0.5 < half.high


def test_one_process_says_nothing_of_chance() -> None:
    alone = profile_of(ROWS[:1])
    for found in (
        rst_interval(COUNTS, alone),
        operation_ratio("train_step", alone, profile_of(ROWS)),
    ):
        assert ends(found) == (0.0, math.inf)


def test_what_cannot_be_charged_is_refused() -> None:
    profile = profile_of(ROWS)
    with pytest.raises(KeyError, match="'swap' has no cost"):
        rst_interval({"swap": 1}, profile)
    with pytest.raises(ValueError, match="'free' is no policy"):
        rst_interval(COUNTS, profile, "free")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1: 95"):
        rst_interval(COUNTS, profile, confidence=95)


@pytest.mark.slow
def test_coverage() -> None:
    """Simulated calibrations of a known truth: 5 processes, 1.5% between them, 3% within."""
    random = np.random.default_rng(0)
    truth = np.array([0.01, 0.002])
    a = np.array([100, 20])
    repeats, processes, samples = 600, 5, 50
    covered = dict.fromkeys(("rst", "pooled"), 0)
    for _ in range(repeats):
        # What makes a process slow makes all of it slow, and each operation a little more or less.
        common = 1 + 0.015 * random.standard_normal((processes, 1))
        own = 1 + 0.003 * random.standard_normal((processes, 2))
        level = truth * common * own
        single = level[:, :, None] * (1 + 0.03 * random.standard_normal((processes, 2, samples)))
        medians = np.median(single, axis=2)
        rows = [{"train_step": step, "collect": collect} for step, collect in medians.tolist()]
        profile = profile_of(rows)
        counts_a = {"train_step": 100, "collect": 20}
        rst = rst_interval(counts_a, profile)
        covered["rst"] += rst.low <= truth @ a <= rst.high
        # Naive: every step is an independent sample, whichever process it is of.
        steps = np.tensordot(a, single, axes=(0, 1)).ravel()
        pooled = stats.ttest_1samp(steps, 0.0).confidence_interval(0.95)
        covered["pooled"] += pooled.low <= truth @ a <= pooled.high
    share = {name: count / repeats for name, count in covered.items()}
    # Four standard errors of a share of 95% in 600 are 3.6%.
    assert abs(share["rst"] - 0.95) < 0.036
    assert share["pooled"] < 0.6


def test_a_ratio_that_nothing_is_known_of_ends_nowhere() -> None:
    """Costs as far apart as a profile takes, asked for with a confidence that they cannot bear."""
    wild = profile_of([{"step": 1e-15}, {"step": 1e9}])
    ratio = operation_ratio("step", wild, wild, confidence=0.9999)
    assert ratio.estimate == pytest.approx(1)
    assert (ratio.low, ratio.high) == (0, math.inf)
