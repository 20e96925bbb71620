"""The meter over a span, with the real NVML binding over the fake library."""

import json
import math
import os
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_nvml import GPU_IS_LOST, NOT_SUPPORTED, TIMEOUT, FakeNvml
from timing.gpu.active_time import SampledActivity, active_by_accounting
from timing.gpu.gauge import PowerIntegral
from timing.gpu.meter import GpuMeter, probe_gpus
from timing.gpu.nvml import THROTTLE_FIELDS, ProcessShare
from timing.gpu.span import SHORTEST_WINDOW_SECONDS, GpuUse
from timing.gpu.visible_devices import visible_devices

POLL_SECONDS = 0.01


@pytest.fixture
def any_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test have the active time of a short span."""
    monkeypatch.setattr("timing.gpu.span.SHORTEST_WINDOW_SECONDS", 0.0)


def span(*, seconds: float = 0.0) -> tuple[GpuUse, ...]:
    with GpuMeter(POLL_SECONDS) as meter:
        time.sleep(seconds)
    return meter.uses


def unavailable(use: GpuUse) -> str:
    return "\n".join(use.unavailable)


def test_counters_are_read_at_both_ends(nvml: FakeNvml) -> None:
    nvml.set("energy", 5_000_000)
    nvml.set("field 74", 3e9)
    with GpuMeter() as meter:
        nvml.set("energy", 5_002_500)
        nvml.set("field 74", 3.25e9)
        nvml.set("energy", 70_000, device=1)
    one, other = meter.uses
    assert (one.uuid, one.energy_joules, one.energy_source) == ("GPU-aaaa", 2.5, "counter")
    assert one.throttled_seconds == dict.fromkeys(THROTTLE_FIELDS, 0.0) | {
        "software power cap": 0.25
    }
    assert (other.uuid, other.energy_joules) == ("GPU-bbbb", 70.0)


def test_what_has_no_counter_is_polled(nvml: FakeNvml) -> None:
    nvml.set("SM clock", 1800)
    nvml.set("memory clock", 2000)
    nvml.set("temperature", 50)
    nvml.set("memory", 10)
    nvml.set("utilisation", 90)
    meter = GpuMeter(5.0)
    meter.start()
    # Neither end sees this, only a poll between them.
    nvml.set("SM clock", 900)
    nvml.set("memory clock", 1000)
    nvml.set("temperature", 80)
    nvml.set("memory", 70)
    nvml.set("utilisation", 30)
    assert meter._spans is not None
    meter._spans[0].poll()
    nvml.set("SM clock", 1500)
    nvml.set("memory clock", 1800)
    nvml.set("temperature", 60)
    nvml.set("memory", 40)
    nvml.set("utilisation", 60)
    meter.stop()
    use = meter.uses[0]
    assert use.polls == 3
    assert (use.sm_clock_mean_mhz, use.sm_clock_min_mhz) == (1400, 900)
    assert (use.memory_clock_mean_mhz, use.memory_clock_min_mhz) == (1600, 1000)
    assert (use.temperature_max_celsius, use.memory_peak_bytes) == (80, 70)
    assert use.utilisation_mean_percent == 60


def test_the_thread_polls_and_ends_with_the_span(nvml: FakeNvml) -> None:
    assert span(seconds=0.2)[0].polls > 4
    assert "gpu-meter" not in [thread.name for thread in threading.enumerate()]


def test_the_thread_ends_when_the_block_raises(nvml: FakeNvml) -> None:
    meter = GpuMeter(POLL_SECONDS)
    with pytest.raises(ZeroDivisionError), meter:
        1 / 0  # noqa: B018
    assert len(meter.uses) == 2
    assert "gpu-meter" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("nvml")
def test_start_and_stop_in_turn() -> None:
    meter = GpuMeter()
    with pytest.raises(RuntimeError, match="does not run"):
        meter.stop()
    meter.start()
    with pytest.raises(RuntimeError, match="runs already"):
        meter.start()
    meter.stop()
    meter.start()
    assert meter.uses == ()
    meter.stop()
    assert len(meter.uses) == 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, 5.1, math.nan])
def test_a_poll_interval_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 5; got"):
        GpuMeter(seconds)


def test_a_use_is_json(nvml: FakeNvml) -> None:
    nvml.refuse("temperature", NOT_SUPPORTED)
    use = span()[0]
    assert json.loads(use.model_dump_json())["temperature_max_celsius"] is None
    assert GpuUse.model_validate_json(use.model_dump_json()) == use


def test_a_missing_energy_counter_is_replaced_by_integrated_power(nvml: FakeNvml) -> None:
    nvml.refuse("energy", NOT_SUPPORTED)
    nvml.set("power", 200_000)
    use = span(seconds=0.1)[0]
    assert use.energy_source == "integrated power"
    assert use.energy_joules == pytest.approx(200 * use.window_seconds, rel=0.1)
    assert "no energy counter: Not Supported" in use.unavailable


def test_an_older_driver_without_the_counter(old_nvml: FakeNvml) -> None:
    use = span()[0]
    assert use.energy_source == "integrated power"
    assert "no energy counter: Function Not Found" in use.unavailable


@given(
    st.lists(
        st.tuples(st.floats(0.01, 10), st.floats(0, 1000)),
        min_size=2,
        max_size=20,
    )
)
def test_integrated_power_is_the_naive_area(readings: list[tuple[float, float]]) -> None:
    integral = PowerIntegral()
    moment, moments = 100.0, []
    for step, watts in readings:
        moment += step
        moments.append(moment)
        integral.add(moment, watts)
    # The naive area, in slices so thin that the power is a constant in each.
    naive, slices = 0.0, 200
    for (begin, end), ((_, first), (_, last)) in zip(
        pairwise(moments), pairwise(readings), strict=True
    ):
        for place in range(slices):
            share = (place + 0.5) / slices
            naive += (end - begin) / slices * (first + (last - first) * share)
    assert integral.joules == pytest.approx(naive, rel=1e-9, abs=1e-9)


def test_power_refused_in_between_tells_no_energy(nvml: FakeNvml) -> None:
    nvml.refuse("energy", NOT_SUPPORTED)
    meter = GpuMeter(5.0).start()
    nvml.refuse("power", TIMEOUT)
    assert meter._spans is not None
    meter._spans[0].poll()
    nvml.set("power", 200_000)
    meter.stop()
    assert (meter.uses[0].energy_joules, meter.uses[0].energy_source) == (None, None)
    assert "no power: Timeout" in meter.uses[0].unavailable


@pytest.mark.usefixtures("any_window")
def test_a_gpu_lost_in_the_span_tells_nothing_more(nvml: FakeNvml) -> None:
    nvml.set("monitor", 1)
    with GpuMeter(POLL_SECONDS) as meter:
        nvml.lose()
    lost, well = meter.uses
    unknown = set(GpuUse.model_fields) - {
        "uuid", "name", "window_seconds", "polls", "unavailable", "other_processes_begin",
    }  # fmt: skip
    assert {name: getattr(lost, name) for name in unknown} == dict.fromkeys(unknown)
    assert "no energy counter: GPU is lost" in lost.unavailable
    assert "no temperature: GPU is lost" in lost.unavailable
    assert "no active time: no source tells it" in lost.unavailable
    assert well.temperature_max_celsius == 40
    assert nvml.marks_alive() == 0


def test_a_counter_that_goes_back_tells_nothing(nvml: FakeNvml) -> None:
    nvml.set("energy", 9_000)
    nvml.set("field 74", 5e9)
    with GpuMeter() as meter:
        nvml.set("energy", 1_000)
        nvml.set("field 74", 1e9)
    use = meter.uses[0]
    assert (use.energy_joules, use.energy_source) == (None, None)
    assert "software power cap" not in (use.throttled_seconds or {})
    assert "no energy counter: the driver reset it in the span" in use.unavailable
    assert (
        "no throttled time by software power cap: the driver reset it in the span"
        in use.unavailable
    )


def test_a_throttle_counter_faster_than_time_is_not_believed(nvml: FakeNvml) -> None:
    with GpuMeter() as meter:
        nvml.set("field 270", 60e9)
    use = meter.uses[0]
    assert set(use.throttled_seconds or {}) == set(THROTTLE_FIELDS) - {"hardware thermal slowdown"}
    assert "no throttled time by hardware thermal slowdown: it counted 60 s in" in unavailable(use)


def test_processes_at_both_ends(nvml: FakeNvml) -> None:
    nvml.process(os.getpid())
    with GpuMeter() as meter:
        nvml.process(os.getppid())
    assert meter.uses[0].other_processes_begin == ()
    assert meter.uses[0].other_processes_end == (os.getppid(),)


def test_a_short_span_has_no_active_time(nvml: FakeNvml) -> None:
    use = span()[0]
    assert use.active is None
    assert "is too short for it: take 20 s or more" in unavailable(use)


@pytest.mark.usefixtures("any_window")
def test_accounting_is_the_best_source(nvml: FakeNvml) -> None:
    nvml.set("monitor", 1)
    nvml.set("monitor percent", 90)
    nvml.set("accounting samples", 100)
    nvml.set("accounting sum", 100 * 20_00)
    with GpuMeter() as meter:
        time.sleep(0.05)
        nvml.set("accounting samples", 140)
        nvml.set("accounting sum", 100 * 20_00 + 40 * 60_00)
    use = meter.uses[0]
    assert use.active is not None
    assert (use.active.source, use.active.scope) == ("accounting", "process")
    assert use.active.gpu_active_seconds == pytest.approx(0.6 * use.window_seconds)
    assert use.active.bound_seconds == pytest.approx((2 / 40 + 0.005) * use.window_seconds)
    assert nvml.marks_alive() == 0


@pytest.mark.parametrize(
    ("begin", "end"),
    [((5, 100.0), (5, 100.0)), ((5, 100.0), (4, 90.0)), ((5, 100.0), (6, 250.0))],
)
def test_accounting_that_cannot_be_is_left(begin, end) -> None:
    assert active_by_accounting(ProcessShare(*begin), ProcessShare(*end), 30.0) is None


@pytest.mark.usefixtures("any_window")
def test_the_monitor_comes_next(nvml: FakeNvml) -> None:
    nvml.set("monitor", 1)
    nvml.set("monitor percent", 75)
    use = span(seconds=0.05)[0]
    assert use.active is not None
    assert (use.active.source, use.active.scope) == ("performance monitor", "device")
    assert use.active.gpu_active_seconds == pytest.approx(0.75 * use.window_seconds)
    assert use.active.bound_seconds == pytest.approx(0.2 + 0.005 * use.window_seconds)
    assert nvml.marks_alive() == 0
    assert "no process accounting: Not Supported" in use.unavailable


@pytest.mark.usefixtures("any_window")
def test_samples_come_next(nvml: FakeNvml) -> None:
    begin = time.time()
    nvml.sample(begin - 0.01, 0)
    meter = GpuMeter(POLL_SECONDS).start()
    for _ in range(20):
        time.sleep(0.01)
        nvml.sample(time.time(), 80)
    meter.stop()
    use = meter.uses[0]
    assert use.active is not None
    assert (use.active.source, use.active.scope) == ("samples", "device")
    assert use.active.gpu_active_seconds == pytest.approx(0.8 * use.window_seconds, rel=1e-6)


@pytest.mark.usefixtures("any_window")
def test_polled_utilisation_comes_last(nvml: FakeNvml) -> None:
    nvml.refuse("samples", NOT_SUPPORTED)
    nvml.set("utilisation", 100)
    meter = GpuMeter(5.0).start()
    assert meter._spans is not None
    nvml.set("utilisation", 40)
    meter._spans[0].poll()
    nvml.set("utilisation", 70)
    meter.stop()
    use = meter.uses[0]
    assert use.active is not None
    assert (use.active.source, use.active.scope) == ("utilisation", "device")
    window = use.window_seconds
    assert use.active.gpu_active_seconds == pytest.approx(0.7 * window)
    # Readings of 100, 40 and 70 have a standard deviation of 30.
    bound = 2 * window / 2 + 0.005 * window + 2 * 0.30 / math.sqrt(3) * window
    assert use.active.bound_seconds == pytest.approx(bound)


@pytest.mark.usefixtures("any_window")
def test_under_mig_there_is_no_active_time(nvml: FakeNvml) -> None:
    nvml.set("MIG mode", 1)
    use = span()[0]
    assert use.uuid == "MIG-1111"
    assert use.active is None
    assert use.utilisation_mean_percent is None
    assert "no utilisation: NVML does not measure it under MIG" in use.unavailable


def naive_active(samples: list[tuple[float, int]], begin: float, window: float) -> float:
    """Looks at the span in thin slices; each has the per cent of the sample that covers it."""
    slices = 50_000
    moments = begin + (np.arange(slices) + 0.5) * window / slices
    ends, percents = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    return float((percents[np.searchsorted(ends, moments)] / 100).mean() * window)


@pytest.mark.slow
@settings(max_examples=50)
@given(
    periods=st.lists(st.floats(1 / 6, 1.0), min_size=45, max_size=50),
    percents=st.lists(st.integers(0, 100), min_size=50, max_size=50),
    offset=st.floats(0, 1),
    batch=st.integers(1, 10),
)
def test_sampled_activity_is_the_naive_sum_within_its_bound(
    periods: list[float], percents: list[int], offset: float, batch: int
) -> None:
    begin = 1000.0
    ends = [begin - offset]
    for period in periods:
        ends.append(ends[-1] + period)
    samples = list(zip(ends, [0, *percents], strict=False))
    window = ends[-1] - begin
    activity = SampledActivity(begin)
    for place in range(0, len(samples), batch):
        # A batch may bring again what was seen.
        activity.add([(end, float(percent)) for end, percent in samples[: place + batch]])
    active = activity.active(window)
    assert active is not None
    assert active.gpu_active_seconds == pytest.approx(
        naive_active(samples, begin, window), abs=0.002 * window
    )
    mean_period = sum(periods) / len(periods)
    assert active.bound_seconds == pytest.approx(2 * mean_period + 0.005 * window, rel=1e-6)


def test_lost_samples_widen_the_bound_and_then_tell_nothing() -> None:
    def lost(seconds: float):
        activity = SampledActivity(100.0)
        ends = [100.0 + 0.5 * place for place in range(81)]
        activity.add([(end, 50.0) for end in ends if not 110 < end < 110 + seconds])
        return activity.active(40.0)

    whole, some = lost(0.0), lost(2.0)
    assert whole is not None
    assert some is not None
    assert whole.gpu_active_seconds == some.gpu_active_seconds == 20.0
    assert some.bound_seconds == pytest.approx(whole.bound_seconds + 2.0)
    assert lost(5.0) is None


def test_probing_leaves_no_mark(nvml: FakeNvml) -> None:
    nvml.set("monitor", 1)
    nvml.refuse("fields", GPU_IS_LOST, device=1)
    nvml.refuse("processes", NOT_SUPPORTED, device=1)
    told, missing = probe_gpus()
    assert missing is None
    one, other = told.values()
    assert one["performance monitor"] == "available"
    assert one["throttled time by sync boost"] == "available"
    assert other["throttled time"] == "not available: GPU is lost"
    assert other["processes"] == "not available: Not Supported"
    assert set(one) - set(other) == {
        "other processes",
        *(f"throttled time by {reason}" for reason in THROTTLE_FIELDS),
    }
    assert nvml.marks_alive() == 0


@pytest.mark.skipif(bool(visible_devices().devices), reason="a GPU is visible here")
def test_without_a_gpu_that_is_said() -> None:
    with GpuMeter() as meter:
        pass
    assert meter.uses == ()
    assert "NVML" in (meter.unavailable or "")
    assert probe_gpus() == ({}, meter.unavailable)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_real_gpu_is_active_for_as_long_as_its_load_takes() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    out = torch.empty_like(matrix)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def load_seconds() -> float:
        """Some tenths of a second of work without a gap, and how long it took."""
        first.record()
        for _ in range(150):
            torch.mm(matrix, matrix, out=out)
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    load_seconds()
    busy_seconds = 0.0
    with GpuMeter(0.5) as meter:
        end = time.monotonic() + SHORTEST_WINDOW_SECONDS + 1
        while time.monotonic() < end:
            busy_seconds += load_seconds()
            time.sleep(0.4)
    use, *_ = meter.uses
    assert use.active is not None, use.unavailable
    error = abs(use.active.gpu_active_seconds - busy_seconds)
    assert error <= use.active.bound_seconds, f"{busy_seconds:.3f} s of {use!r}"
    # More than an idle card draws, and less than any may.
    assert use.energy_joules is not None
    assert 20 < use.energy_joules / use.window_seconds < 1500
    assert use.sm_clock_min_mhz is not None
    assert use.sm_clock_mean_mhz is not None
    assert 0 < use.sm_clock_min_mhz <= use.sm_clock_mean_mhz < 5000
    assert use.temperature_max_celsius is None or 10 < use.temperature_max_celsius < 120
    assert use.memory_peak_bytes is not None
    assert use.memory_peak_bytes >= torch.cuda.memory_allocated()
    assert use.polls > 20
    assert GpuUse.model_validate_json(use.model_dump_json()) == use
