"""Scaled time: by the ratio of the same operation and workload alone, and marked wherever it is."""

import pytest

from tests.timing.test_profile import WORKLOAD, profile_of
from timing import ProfileError, scaled_seconds
from timing.calibration.uncertainty import operation_ratio

HERE = profile_of([{"train_step": 0.02 + i / 1e4, "collect": 0.001} for i in range(5)])
REFERENCE = profile_of([{"train_step": 0.01 + i / 1e4, "collect": 0.003} for i in range(5)])


def test_it_is_the_ratio_of_the_same_operation() -> None:
    found = scaled_seconds(10.0, "train_step", WORKLOAD, HERE, REFERENCE)
    ratio = operation_ratio("train_step", HERE, REFERENCE)
    assert found.estimated_seconds == 10.0 * ratio.estimate
    assert 5.0 < found.estimated_seconds < 5.2
    assert (found.low_seconds, found.high_seconds) == (10.0 * ratio.low, 10.0 * ratio.high)
    assert found.low_seconds < found.estimated_seconds < found.high_seconds
    # The other operation is three times slower there, where this one is twice as fast.
    collect = scaled_seconds(10.0, "collect", WORKLOAD, HERE, REFERENCE)
    assert collect.estimated_seconds == pytest.approx(30.0)


def test_it_is_marked_as_an_estimate_wherever_it_is_printed() -> None:
    found = scaled_seconds(10.0, "train_step", WORKLOAD, HERE, REFERENCE)
    for printed in (str(found), f"{found}", repr(found), f"{found!s:>120}"):
        assert "estimate" in printed.lower()
    assert str(found).startswith("about 5.0")
    with pytest.raises(TypeError):
        f"{found:.3f}"
    with pytest.raises(TypeError):
        float(found)  # type: ignore[arg-type]


def test_another_operation_or_signature_is_refused() -> None:
    with pytest.raises(ProfileError, match="no cost for swap"):
        scaled_seconds(10.0, "swap", WORKLOAD, HERE, REFERENCE)
    with pytest.raises(ProfileError, match="batch=64 and this run has batch=32"):
        scaled_seconds(10.0, "train_step", {**WORKLOAD, "batch": 32}, HERE, REFERENCE)
    other = profile_of([{"train_step": 0.01}], {**WORKLOAD, "batch": 128})
    for here, reference in ((HERE, other), (other, REFERENCE)):
        with pytest.raises(ProfileError, match="batch=128 and this run has batch=64"):
            scaled_seconds(10.0, "train_step", WORKLOAD, here, reference)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="not a finite number of seconds from 0"):
        scaled_seconds(seconds, "train_step", WORKLOAD, HERE, REFERENCE)
