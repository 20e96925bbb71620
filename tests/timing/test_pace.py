"""The pace of the processor: fixed work, and what is slower than it can be."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timing.calibration.pace import SLOWED, is_slowed, own_pace, pace_seconds


def test_the_work_takes_processor_time_and_waiting_is_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < pace_seconds() < 1
    clock = time.thread_time

    def after_a_wait() -> float:
        time.sleep(0.2)
        return clock()

    monkeypatch.setattr(time, "thread_time", after_a_wait)
    assert pace_seconds() < 0.1


@given(st.lists(st.floats(1e-5, 1e-2), min_size=2))
def test_the_own_pace_is_that_of_the_fastest_tenth(paces: list[float]) -> None:
    assert own_pace(paces) == pytest.approx(float(np.quantile(paces, 0.1)), rel=1e-12)


def test_one_reading_tells_no_own_pace() -> None:
    with pytest.raises(ValueError, match="two readings at the least, not 1"):
        own_pace([1.0])


def test_slowed_is_more_than_a_jitter() -> None:
    assert not is_slowed(1.03, 1.0)
    assert not is_slowed(SLOWED, 1.0)
    assert is_slowed(1.5, 1.0)
