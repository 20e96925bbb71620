"""The probe of the processor: fixed work, and what is slower than it can be."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timing.calibration.cpu_probe import (
    MAX_SLOWDOWN,
    cpu_probe_seconds,
    drop_disturbed,
    is_disturbed,
    undisturbed_probe,
)


def test_the_work_takes_processor_time_and_waiting_is_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < cpu_probe_seconds() < 1
    clock = time.thread_time

    def after_a_wait() -> float:
        time.sleep(0.2)
        return clock()

    monkeypatch.setattr(time, "thread_time", after_a_wait)
    assert cpu_probe_seconds() < 0.1


@given(st.lists(st.floats(1e-5, 1e-2), min_size=2))
def test_an_undisturbed_probe_is_the_fastest_tenth(probes: list[float]) -> None:
    assert undisturbed_probe(probes) == pytest.approx(float(np.quantile(probes, 0.1)), rel=1e-12)


def test_one_probe_tells_nothing() -> None:
    with pytest.raises(ValueError, match="two at the least, not 1"):
        undisturbed_probe([1.0])


def test_disturbed_is_more_than_a_jitter() -> None:
    assert not is_disturbed(1.03, 1.0)
    assert not is_disturbed(MAX_SLOWDOWN, 1.0)
    assert is_disturbed(1.5, 1.0)


def test_samples_beside_a_slow_probe_are_dropped() -> None:
    samples = [(1.0, "a"), (2.0, "b"), (1.1, "c"), (1.0, "d")]
    assert drop_disturbed(samples) == ["a", "c", "d"]
    # All of them, where the machine is known to be faster.
    assert drop_disturbed(samples, known_probe=0.5) == []
    assert drop_disturbed(samples, known_probe=3.0) == ["a", "c", "d"]
