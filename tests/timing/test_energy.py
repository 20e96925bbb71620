"""Joules of operations, by the real binding over the fake library, on a clock of the test."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.fake_nvml import NOT_SUPPORTED, FakeNvml
from tests.support.profiles import process, profile_of, with_watts
from tests.support.virtual_gpu import VirtualGpu
from timing import Calibration, Operation, Profile, calibrate, profile_warnings, rse_interval
from timing.calibration import energy_meter
from timing.calibration.energy import EnergyShare, read_joules
from timing.calibration.energy_meter import MAX_ERROR, Meter
from timing.calibration.row import Burst
from timing.calibration.uncertainty import watts_error
from timing.clocks.host_energy import HostEnergy

# Seconds and watts.
TRUTH = {"load_data": (0.002, 80.0), "train_step": (0.02, 500.0), "collect": (0.004, 150.0)}
EVERY = {"load_data": 1, "train_step": 1, "collect": 5}
ALL = EnergyShare(seconds=1e6, processes=1)


@pytest.fixture
def gpu(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> VirtualGpu:
    return VirtualGpu(nvml, monkeypatch)


def operations(gpu: VirtualGpu) -> dict[str, Operation]:
    return {
        name: Operation(gpu.operation(name, *truth), EVERY[name]) for name, truth in TRUTH.items()
    }


def measured(
    made: dict[str, Operation], share: EnergyShare | None = ALL
) -> tuple[Calibration, list[str]]:
    said: list[str] = []
    return calibrate(made, 20.0, math.inf, energy=share, say=said.append), said


def profile_with(*rows: Calibration) -> Profile:
    return profile_of(rows, every=EVERY)


def test_joules_of_an_operation_are_its_watts_times_its_seconds(gpu: VirtualGpu) -> None:
    found, said = measured(operations(gpu))
    assert said == []
    made = profile_with(found)
    # The slow and obvious twin.
    for name, (seconds, watts) in TRUTH.items():
        assert made.joules[name] == pytest.approx(seconds * watts, rel=MAX_ERROR)
        assert found.energy is not None
        assert found.energy.bound(name) <= MAX_ERROR
    assert made.joules_of == "NVIDIA Fake A"
    loop = sum(truth[0] * truth[1] / EVERY[name] for name, truth in TRUTH.items())
    known = rse_interval(made.reference_iteration, made, "mlperf")
    assert known.estimate == pytest.approx(5 * loop, rel=MAX_ERROR)
    assert watts_error(made) == pytest.approx(0, abs=2 * MAX_ERROR)


def test_what_is_faster_from_the_cache_costs_what_it_costs_in_the_loop(gpu: VirtualGpu) -> None:
    made = operations(gpu)

    def collect() -> None:
        gpu.run("collect", 0.001 if gpu.latest == "collect" else 0.004, 150.0)

    made["collect"] = Operation(collect, every=5)
    found, _ = measured(made)
    assert profile_with(found).joules["collect"] == pytest.approx(0.004 * 150, rel=0.02)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.floats(0.005, 0.7), st.floats(60, 700)), min_size=2, max_size=4),
    st.floats(0, 0.1),
)
@example([(0.05, 700.0), (0.05, 60.0)], 0.0999)
def test_watts_are_right_to_the_bound_wherever_the_counter_is_in_its_period(
    nvml: FakeNvml, truth: list[tuple[float, float]], phase: float
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        gpu = VirtualGpu(nvml, patched, phase)
        meter = energy_meter.find_meter()
        assert isinstance(meter, Meter)
        runs = {str(n): gpu.operation(str(n), *each) for n, each in enumerate(truth)}
        seconds = {str(n): each[0] for n, each in enumerate(truth)}
        found = read_joules(meter, runs, seconds, ALL, pytest.fail)
    for n, (_, watts) in enumerate(truth):
        burst = found[str(n)]
        assert burst.seconds >= 5 - 1e-9
        bound = energy_meter.GPU_PERIOD_SECONDS / burst.seconds
        assert abs(burst.watts / watts - 1) <= bound + 1e-5


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.floats(0.001, 9.0), min_size=1, max_size=12),
    st.integers(1, 6),
    st.floats(1.0, 60.0),
)
def test_all_operations_are_read_by_the_processes_together_or_none(
    nvml: FakeNvml, seconds: list[float], processes: int, share_seconds: float
) -> None:
    took = dict(zip(map(str, range(len(seconds))), seconds, strict=True))
    read: Counter[str] = Counter()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        gpu = VirtualGpu(nvml, patched)
        meter = Meter(energy_meter.visible_devices().devices[:1])
        runs = {name: gpu.operation(name, each, 100.0) for name, each in took.items()}
        for left in range(processes, 0, -1):
            share = EnergyShare(seconds=share_seconds, processes=left, read=dict(read))
            read.update([*read_joules(meter, runs, took, share, said.append)])
    needed = sum(max(5.0, each) + max(0.1, each) for each in seconds)
    if needed > processes * share_seconds:
        assert not read
        assert gpu.ran == 0
        assert f"give --seconds {math.ceil(2 * needed)} or more" in said[0]
    else:
        assert read.keys() == took.keys()
        assert said == []
        # At most one operation more than its share, for each of them.
        assert gpu.seconds <= processes * (share_seconds + 2 * max(5.1, *seconds) + 0.2)


def test_with_too_little_time_nothing_is_read_and_the_time_it_takes_is_said(
    gpu: VirtualGpu,
) -> None:
    found, said = measured(operations(gpu), EnergyShare(seconds=5.0, processes=2))
    assert found.energy is None
    (line,) = said
    assert line.startswith("no joules: to read 3 operations takes 15 s")
    assert line.endswith("give --seconds 31 or more")


def at(gpu: VirtualGpu, seconds: float, call: Callable[[], object]) -> dict[str, Operation]:
    """The operations, and what happens once at a moment of the clock."""
    made = operations(gpu)
    step = made["train_step"].run
    happened = False

    def run() -> None:
        nonlocal happened
        step()
        if gpu.seconds >= seconds and not happened:
            happened = True
            call()

    return {**made, "train_step": Operation(run)}


def costs_of(found: Calibration) -> list[float]:
    return [pytest.approx(cost.median_seconds) for cost in found.costs.values()]


@pytest.mark.parametrize("seconds", [10.0, 27.0])
def test_a_meter_that_vanishes_is_said_and_the_calibration_goes_on(
    gpu: VirtualGpu, seconds: float
) -> None:
    alone, _ = measured(operations(gpu), None)
    gpu.seconds = 0.0
    found, said = measured(at(gpu, seconds, gpu.nvml.lose))
    assert costs_of(alone) == [cost.median_seconds for cost in found.costs.values()]
    (line,) = said
    assert line.startswith("no joules of NVIDIA Fake A (GPU-aaaa): no energy counter: GPU is lost")
    if seconds == 10.0:
        assert found.energy is None
        return
    # Of those that were read before it vanished nothing is lost, and of the others nothing told.
    assert line.endswith("while train_step ran")
    made = profile_with(found)
    assert made.joules.keys() == {"load_data"}
    assert any(
        "no joules of train_step, collect were read: what runs them has no RSE" in each
        for each in profile_warnings(made)
    )
    with pytest.raises(KeyError, match="'train_step' has no joules"):
        rse_interval({"train_step": 1}, made)


@pytest.mark.parametrize(("seconds", "where"), [(10.0, ""), (27.0, ", while train_step ran")])
def test_a_counter_that_steps_back_tells_nothing(
    gpu: VirtualGpu, seconds: float, where: str
) -> None:
    def reset() -> None:
        gpu.joules = 0.0

    found, said = measured(at(gpu, seconds, reset))
    assert said == [
        "no joules of NVIDIA Fake A (GPU-aaaa): its counter stepped back: the driver reset it"
        + where
    ]
    assert set(found.energy.bursts if found.energy else {}) <= {"load_data"}


def test_a_counter_that_stands_still_tells_nothing(
    gpu: VirtualGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_tell", lambda _: None)
    found, said = measured(operations(gpu))
    assert found.energy is None
    assert said[0].startswith("no joules of NVIDIA Fake A: the counter stood still for ")


def test_a_card_without_a_counter_says_so(gpu: VirtualGpu) -> None:
    gpu.nvml.refuse("energy", NOT_SUPPORTED)
    gpu._tell = lambda _: None  # type: ignore[method-assign]
    found, said = measured(operations(gpu))
    assert found.energy is None
    assert said == ["no joules of NVIDIA Fake A (GPU-aaaa): no energy counter: Not Supported"]


@pytest.mark.parametrize(("field", "is_heat"), [(269, True), (270, True), (271, True), (74, False)])
def test_a_burst_of_a_hot_card_is_left_out_and_one_under_its_power_cap_is_not(
    gpu: VirtualGpu, field: int, is_heat: bool
) -> None:
    # In the burst of train_step, the second.
    found, said = measured(at(gpu, 27.0, lambda: gpu.nvml.set(f"field {field}", 1e9)))
    assert found.energy is not None
    assert found.energy.bursts.keys() == (
        {"load_data", "collect"} if is_heat else {"load_data", "train_step", "collect"}
    )
    if is_heat:
        (line,) = said
        assert line.startswith("no joules of train_step: NVIDIA Fake A (GPU-aaaa) was held back by")


@pytest.mark.parametrize("seconds", [10.0, 27.0])
def test_joules_that_would_be_of_others_too_are_left_out(gpu: VirtualGpu, seconds: float) -> None:
    found, said = measured(at(gpu, seconds, lambda: gpu.nvml.process(os.getppid())))
    assert found.energy is None
    (line,) = said
    assert line == (
        "no joules, since they would be of others too: 1 other process(es) had work on a GPU"
    )


def test_one_meter_has_all_devices_in_use_and_a_strange_one_is_refused(
    gpu: VirtualGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy_meter, "uuids_in_use", lambda: ("bbbb", "aaaa"))
    meter = energy_meter.find_meter()
    assert isinstance(meter, Meter)
    assert meter.of == "NVIDIA Fake A and NVIDIA Fake B"
    gpu.nvml.set("energy", 0, device=1)
    meter.begin()
    gpu.nvml.set("energy", 2000, device=1)
    gpu.run("step", 10.0, 5.0)
    found = meter.end()
    assert found is not None
    assert (found.joules, found.seconds) == (pytest.approx(52, rel=0.01), 10.0)
    monkeypatch.setattr(energy_meter, "uuids_in_use", lambda: ("aaaa", "dddd"))
    assert energy_meter.find_meter() == "NVML does not know every GPU that is in use"


@pytest.mark.parametrize("cores", [0, 1])
def test_on_the_cpu_joules_are_of_the_processors_where_no_others_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    domain = tmp_path / "intel-rapl:0"
    domain.mkdir()
    (domain / "name").write_text("package-0")
    (domain / "max_energy_range_uj").write_text("262143328850")
    now, joules = 0.0, 0.0

    def run(seconds: float, watts: float) -> None:
        nonlocal now, joules
        now, joules = now + seconds, joules + seconds * watts
        (domain / "energy_uj").write_text(str(round(1e6 * joules)))

    run(0, 0)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr("timing.calibration.measure.cpu_probe_seconds", lambda: 1e-4)
    monkeypatch.setattr(energy_meter, "HostEnergy", partial(HostEnergy, tmp_path))
    times = psutil.cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", lambda: times._replace(user=times.user + cores * now))
    monkeypatch.setattr("timing.limits.cores", lambda: None)
    made = {"step": Operation(lambda: run(0.05, 40)), "rest": Operation(lambda: run(0.05, 10))}
    said: list[str] = []
    found = calibrate(made, 5.0, math.inf, energy=ALL, say=said.append)
    if cores:
        assert found.energy is None
        assert said[0].startswith("no joules, since they would be of others too: other processes")
        return
    profile = profile_of([found])
    assert profile.joules_of == "the processors"
    assert profile.joules == {"step": pytest.approx(2.0), "rest": pytest.approx(0.5)}
    assert watts_error(profile) == pytest.approx(0, abs=0.01)


def test_without_a_meter_a_profile_has_no_such_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy_meter, "HostEnergy", partial(HostEnergy, tmp_path / "nowhere"))
    said: list[str] = []
    made = {"step": Operation(lambda: time.sleep(1e-4))}
    found = calibrate(made, 0.01, math.inf, energy=ALL, say=said.append)
    assert found.energy is None
    assert said[0].startswith("no joules of the processors: ")
    path = tmp_path / "reference.json"
    profile_of([found]).write(path)
    (row,) = json.loads(path.read_text())["processes"]
    assert not {"energy", "heat"} & row.keys()
    read = Profile.read(path)
    assert (read.joules, read.joules_of, watts_error(read)) == ({}, "", None)


def row(**watts: float) -> Calibration:
    """A process of a profile that read some of its operations of 10 ms."""
    return with_watts(process({"load_data": 0.01, "train_step": 0.01, "collect": 0.01}), **watts)


def test_a_profile_has_the_median_watts_of_those_that_read_them(tmp_path: Path) -> None:
    made = profile_with(row(train_step=400, load_data=90), row(train_step=500), row(collect=200))
    assert made.watts == {"load_data": 90, "train_step": 450, "collect": 200}
    assert made.joules == {name: pytest.approx(0.01 * each) for name, each in made.watts.items()}
    path = tmp_path / "reference.json"
    made.write(path)
    assert Profile.read(path) == made
    # Chance between the two that read it, and the bound of the counter.
    known = rse_interval({"train_step": 100}, made)
    assert known.low < 0.98 * 400 < known.estimate < 1.02 * 500 < known.high
    steady = profile_with(*[row(train_step=400)] * 3)
    known = rse_interval({"train_step": 100, "collect": 0}, steady)
    assert (known.low, known.high) == (pytest.approx(0.98 * 400), pytest.approx(1.02 * 400))


def test_joules_of_two_devices_do_not_make_one_profile() -> None:
    other = row(collect=200)
    assert other.energy is not None
    other = other.model_copy(update={"energy": other.energy.model_copy(update={"of": "B"})})
    with pytest.raises(ValueError, match="joules are of one meter, and not of B, NVIDIA A"):
        profile_with(row(train_step=400), other)
    with pytest.raises(ValueError, match="energy has operations that every lacks: swap"):
        profile_with(row(swap=400))


def test_watts_that_do_not_add_up_to_the_loop_are_warned_of() -> None:
    made = row(load_data=100, train_step=400, collect=100)
    assert made.energy is not None
    for watts, warned in ((200.0, False), (150.0, True)):
        loop = made.energy.model_copy(
            update={
                "loop": Burst(joules=10 * watts, seconds=10),
                "loop_counts": {"load_data": 10, "train_step": 10, "collect": 10},
            }
        )
        profile = profile_with(*[made.model_copy(update={"energy": loop})] * 5)
        assert watts_error(profile) == pytest.approx(200 / watts - 1)
        found = [each for each in profile_warnings(profile) if "are +33.3% off" in each]
        assert bool(found) == warned
    unheld = profile_with(*[made] * 5)
    assert profile_warnings(unheld) == (
        "its joules were not held against those of a loop: give the calibration more time",
    )
