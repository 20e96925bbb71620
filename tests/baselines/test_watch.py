"""What is measured of a training beside its RST; what cannot be is named, and ends nothing."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from baselines.training import watch as module
from baselines.training.checkpoint import Checkpoints
from baselines.training.events import EventLog, ending_of, fold, read_events
from baselines.training.loop import train
from baselines.training.measurement import Measurement, Timed, kind_of
from baselines.training.results import TrainingResult
from tests.support.comparisons import log_of
from tests.support.fake_nvml import NOT_SUPPORTED, FakeNvml
from tests.support.trainings import COSTS, RATE, WORKLOAD, follow, method_of
from timing import Budget, Phase

# Two dozen steps: something happens at the twentieth, or a training ends at the half.
BUDGET = 0.25


@functools.cache
def undisturbed() -> TrainingResult:
    return follow("constant", budget=BUDGET)


def measurement_of(result: TrainingResult) -> Measurement:
    assert result.error is None
    assert result.measurement is not None
    return result.measurement


@pytest.mark.slow
def test_every_step_is_in_a_phase_by_what_ran_in_it() -> None:
    result = follow("constant", "ema", "swa", "lawa", budget=1.5)
    found = measurement_of(result)
    timed: Counter[str] = Counter()
    for kind, each in found.phases.items():
        assert kind == kind_of(Counter(each.operations).elements())
        passes = each.phase.count + each.phase.warm_up_count
        timed.update({name: times * passes for name, times in each.operations.items()})
    # Kinds that never left their warm-up have no phase.
    for name in ("load_data", "train_step", "ema_update"):
        assert found.operations[name] - 20 <= timed[name] <= found.operations[name]
    assert timed["evaluate"] == sum(len(run.points) for run in result.runs)
    assert "evaluate" not in found.operations
    assert (found.ranks, found.processes) == (1, 1)
    assert found.cpu_seconds > 0
    seconds = sum(e.phase.total_seconds for name, e in found.phases.items() if name != "evaluate")
    assert 0 < seconds <= result.measured_seconds


def test_what_is_read_of_an_average_is_timed_without_the_evaluation_in_it() -> None:
    def slow(model: nn.Module) -> float:
        time.sleep(0.02)
        return WORKLOAD.evaluate(model)

    workload = dataclasses.replace(WORKLOAD, evaluate=slow)
    result = follow("lawa", workload=workload, budget=BUDGET)
    phases = measurement_of(result).phases
    assert (phases["evaluate"].phase.median_seconds or 0) >= 0.02
    # With it, a reading would take longer than its evaluation, on however busy a machine.
    assert 0 < phases["average"].phase.total_seconds < phases["evaluate"].phase.total_seconds


def phase(median_seconds: float | None, count: int = 100) -> Phase:
    return Phase(count, median_seconds, 0.0, 1.0, 1.0, "host", 0, 0.0)


def test_operations_are_told_by_passes_that_differ_in_them() -> None:
    kinds = {
        "train_step, ema_update": phase(0.012),
        "train_step, ema_update, collect": phase(0.015, 20),
        "average, 2 swap": phase(0.5),
        "evaluate": phase(0.2),
        "score": phase(None, 0),
    }
    phases = {
        "train_step, ema_update": {"train_step": 1, "ema_update": 1},
        "train_step, ema_update, collect": {"train_step": 1, "ema_update": 1, "collect": 1},
        "average, 2 swap": {"average": 1, "swap": 2},
        "evaluate": {"evaluate": 1},
        "score": {"score": 1},
    }
    timed = {name: Timed(phases[name], each) for name, each in kinds.items()}
    found = Measurement({}, 1.0, 1, 1, timed, (), None, ())
    assert found.operation_seconds == {
        "evaluate": 0.2,
        "collect": pytest.approx(0.003),
    }
    assert [kind_of(Counter(own).elements()) for own in phases.values()] == list(phases)


@pytest.fixture
def on_a_gpu(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A training whose model counts as being on the first of two GPUs."""
    monkeypatch.setattr(module, "_uuids_of", lambda _: ("GPU-aaaa", "MIG-aaaa"))
    nvml.set("energy", 5_000_000)
    return nvml


def at_step(step: int, call: Callable[[], object]) -> TrainingResult:
    """A training in which something happens."""
    steps = 0

    def loss(model, batch):
        nonlocal steps
        steps += 1
        if steps == step:
            call()
        return WORKLOAD.loss(model, batch)

    workload = dataclasses.replace(WORKLOAD, loss=loss)
    return follow("constant", workload=workload, budget=BUDGET)


def test_the_gpu_that_is_used_is_metered_and_no_other(on_a_gpu: FakeNvml) -> None:
    found = measurement_of(at_step(20, lambda: on_a_gpu.set("energy", 5_002_500)))
    (use,) = found.gpus
    assert (use.uuid, found.gpu_joules) == ("GPU-aaaa", 2.5)
    assert found.gpu_active_seconds is None
    assert any("no active time: a span of" in why for why in found.unavailable)
    assert not any("model is on the CPU" in why for why in found.unavailable)


def test_a_gpu_that_vanishes_in_mid_run_is_named_and_ends_nothing(on_a_gpu: FakeNvml) -> None:
    on_a_gpu.refuse("power", NOT_SUPPORTED)
    result = at_step(20, on_a_gpu.lose)
    found = measurement_of(result)
    assert found.gpu_joules is None
    assert any("no energy counter: GPU is lost" in why for why in found.unavailable)
    assert result.runs == undisturbed().runs


def test_a_driver_that_is_reset_in_mid_run_makes_no_joules(on_a_gpu: FakeNvml) -> None:
    found = measurement_of(at_step(20, lambda: on_a_gpu.set("energy", 3)))
    assert found.gpu_joules is None
    assert any("energy counter: the driver reset it" in why for why in found.unavailable)


@pytest.mark.slow
def test_a_meter_that_raises_ends_nothing(
    on_a_gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the driver is gone")

    for at_an_end in ("visible_devices", "Span.end"):
        with monkeypatch.context() as patched:
            patched.setattr(f"timing.gpu.meter.{at_an_end}", fail)
            result = follow("constant", budget=BUDGET)
        found = measurement_of(result)
        assert found.gpus == ()
        assert found.gpu_joules is None
        assert any("OSError: the driver is gone" in why for why in found.unavailable)
        assert result.runs == undisturbed().runs


def test_on_the_cpu_no_gpu_is_metered_and_that_is_said(nvml: FakeNvml) -> None:
    found = measurement_of(follow("constant", budget=BUDGET))
    assert found.gpus == ()
    assert "no GPU: the model is on the CPU" in found.unavailable


@pytest.mark.slow
def test_a_training_that_went_on_adds_its_seconds_and_says_so(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def training(**options) -> TrainingResult:
        checkpoints = Checkpoints(tmp_path, seconds=0)
        arguments = (WORKLOAD, [method_of("lawa")], 0, Budget(BUDGET), COSTS, RATE, 5)
        return train(*arguments, checkpoints=checkpoints, **options)

    def kill(_: str, point) -> None:
        if point.step > 12:
            raise Killed

    with pytest.raises(Killed):
        training(on_point=kill)
    alone = measurement_of(follow("lawa", budget=BUDGET))
    result = training()
    found = measurement_of(result)
    assert found.processes == 2
    assert found.operations == alone.operations
    assert (found.host_joules, found.gpu_joules) == (None, None)
    assert any("went on in 2 processes one after another" in why for why in found.unavailable)
    here = sum(e.phase.total_seconds for n, e in found.phases.items() if n != "evaluate")
    assert result.measured_seconds > here


def test_what_was_measured_is_in_the_log_and_comes_back(on_a_gpu: FakeNvml, tmp_path: Path) -> None:
    result = follow("lawa", budget=BUDGET)
    assert measurement_of(result).gpus
    log_of(tmp_path / "one", result)
    assert fold(read_events(tmp_path / "one")) == result
    # As of a version before this was measured.
    bare = dataclasses.replace(result, measurement=None)
    log_of(tmp_path / "other", bare)
    log = tmp_path / "other" / "events.jsonl"
    log.write_text(log.read_text().replace(', "measurement": null', ""))
    assert fold(read_events(tmp_path / "other")) == bare
    with EventLog(tmp_path / "other"):
        assert "measurement" not in log.read_text()
    assert ending_of(result, 0).measurement == result.measurement  # type: ignore[union-attr]
