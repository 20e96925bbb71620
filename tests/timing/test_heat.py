"""Temperatures, clocks and throttling around a calibration, on the fake library."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_nvml import NOT_SUPPORTED, FakeNvml
from tests.support.profiles import ROWS, process, profile_of
from tests.support.virtual_gpu import VirtualGpu
from timing import CalibrationTarget, Operation, calibrate, calibrate_in_processes, profile_warnings
from timing.calibration import processes, worker
from timing.cli.app import app
from timing.cli.commandline import run
from timing.gpu import heat
from timing.gpu.heat import Heat, HeatWatch, State

UUID = "GPU-aaaa"


class Waiting:
    """A clock on which what sleeps wakes later, and a card that cools meanwhile."""

    def __init__(self, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, per_second: float) -> None:
        self.seconds = 0.0
        self.nvml, self.per_second = nvml, per_second
        self.celsius = 40.0
        self.after: Callable[[], object] = lambda: None
        monkeypatch.setattr(heat.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(heat.time, "sleep", self._sleep)

    def warm(self, celsius: float) -> None:
        self.celsius = celsius
        self.nvml.set("temperature", celsius)

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.warm(self.celsius - seconds * self.per_second)
        self.after()


def watched(cool_to: Mapping[str, float], seconds: float = 10.0) -> tuple[Heat, list[str]]:
    said: list[str] = []
    (found,) = HeatWatch(cool_to, seconds, said.append).end([UUID])
    return found, said


def test_it_waits_until_the_card_has_cooled(nvml: FakeNvml, monkeypatch) -> None:
    waiting = Waiting(nvml, monkeypatch, per_second=4.0)
    waiting.warm(60)
    found, said = watched({UUID: 45.0})
    assert found.waited_seconds == pytest.approx(4.0)
    assert found.before == State(celsius=44, sm_clock_mhz=1400, memory_clock_mhz=2600)
    assert said == [f"waited 4.0 s for NVIDIA Fake A ({UUID}) to cool, from 60 to 44 °C"]


def test_the_wait_is_bounded_and_what_is_left_is_said(nvml: FakeNvml, monkeypatch) -> None:
    waiting = Waiting(nvml, monkeypatch, per_second=1.0)
    waiting.warm(60)
    found, said = watched({UUID: 45.0}, seconds=3.0)
    assert (found.waited_seconds, found.before.celsius) == (3.0, 57)
    assert said[0].startswith(f"NVIDIA Fake A ({UUID}) still has 57 °C after a wait of 3.0 s, and")


def test_a_cool_card_is_not_waited_for(nvml: FakeNvml, monkeypatch) -> None:
    Waiting(nvml, monkeypatch, 0.0)
    found, said = watched({UUID: 45.0})
    assert (found.waited_seconds, said) == (0.0, [])


def test_a_card_that_refuses_its_temperature_is_not_waited_for(nvml: FakeNvml, monkeypatch) -> None:
    waiting = Waiting(nvml, monkeypatch, 0.0)
    nvml.refuse("temperature", NOT_SUPPORTED)
    found, said = watched({UUID: 45.0})
    assert waiting.seconds == 0
    assert (found.before.celsius, found.after.celsius) == (None, None)
    assert found.before.sm_clock_mhz == 1400
    assert said == [f"NVIDIA Fake A ({UUID}): no temperature: Not Supported"]


def test_a_card_that_vanishes_while_it_cools_ends_the_wait(nvml: FakeNvml, monkeypatch) -> None:
    waiting = Waiting(nvml, monkeypatch, per_second=1.0)
    waiting.warm(60)
    waiting.after = nvml.lose
    found, said = watched({UUID: 45.0})
    assert waiting.seconds == 0.5
    assert found.before == State(celsius=None, sm_clock_mhz=None, memory_clock_mhz=None)
    assert "to cool, and then it told no more" in said[0]
    assert f"NVIDIA Fake A ({UUID}): no temperature: GPU is lost" in said


def test_without_nvml_that_is_said_where_a_gpu_is_used_alone(monkeypatch) -> None:
    monkeypatch.setattr(heat, "visible_devices", lambda: ((), "no GPU is read: NVML says no"))
    said: list[str] = []
    watch = HeatWatch({}, 1.0, said.append)
    assert watch.end([]) == ()
    assert said == []
    assert watch.end([UUID]) == ()
    assert said == ["no temperatures of GPUs: no GPU is read: NVML says no"]


def hot(celsius: float, name: str = "A") -> Heat:
    before = State(celsius=celsius, sm_clock_mhz=1980, memory_clock_mhz=2619)
    after = State(celsius=70, sm_clock_mhz=None, memory_clock_mhz=2619)
    return Heat(uuid=UUID, name=name, waited_seconds=0, before=before, after=after)


def test_a_profile_keeps_and_shows_how_hot_it_was(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        process(each).model_copy(update={"heat": (hot(celsius),)})
        for each, celsius in zip(ROWS, (40, 41, 45, 40, 52), strict=True)
    ]
    made = profile_of(rows)
    (warning,) = profile_warnings(made)
    assert warning.startswith("process 5: it began with A at 52 °C, and another one at 40: ")
    made.write(tmp_path / "reference.json")
    monkeypatch.setattr(sys, "argv", ["timing", "show", str(tmp_path / "reference.json")])
    with pytest.raises(SystemExit):
        run(app)
    assert "A, by process: 40 to 70 °C at 1980 to ? MHz, 41 to 70" in capsys.readouterr().out


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, operations: Mapping[str, Operation], at_start: Callable
) -> None:
    """Let processes of a calibration be calls in this one, with these operations."""

    def measure(request: worker.WorkerRequest, _: float) -> worker.WorkerResult:
        at_start()
        return worker.measure(request)

    target: Any = CalibrationTarget({"batch": 1}, operations)
    monkeypatch.setattr(worker, "load", lambda _: lambda: target)
    monkeypatch.setattr(processes, "_run", measure)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda _: None)


def test_processes_of_a_calibration_begin_as_cool_as_the_first(nvml: FakeNvml, monkeypatch) -> None:
    waiting = Waiting(nvml, monkeypatch, per_second=4.0)
    gpu = VirtualGpu(nvml, monkeypatch)
    begins = iter([40, 60, 60, 60, 60])
    in_this_process(
        monkeypatch,
        {
            "train_step": Operation(gpu.operation("train_step", 0.05, 400.0)),
            "rest": Operation(gpu.operation("rest", 0.05, 100.0)),
        },
        lambda: waiting.warm(next(begins)),
    )
    said: list[str] = []
    made = calibrate_in_processes("a:b", seconds=200.0, say=said.append)
    # To five above the first, in steps of half a second.
    assert [each.heat[0].before.celsius for each in made.processes] == [40, 44, 44, 44, 44]
    assert said.count(f"waited 4.0 s for NVIDIA Fake A ({UUID}) to cool, from 60 to 44 °C") == 1
    assert made.joules == {
        "train_step": pytest.approx(20, rel=0.02),
        "rest": pytest.approx(5, rel=0.02),
    }
    assert not any("°C" in warning for warning in profile_warnings(made))


def test_processes_share_the_readings_and_say_once_why_there_are_none(
    nvml: FakeNvml, monkeypatch
) -> None:
    Waiting(nvml, monkeypatch, 0.0)
    gpu = VirtualGpu(nvml, monkeypatch)
    names = "abcdefg"
    made = {name: Operation(gpu.operation(name, 0.05, 100.0)) for name in names}
    in_this_process(monkeypatch, made, lambda: None)
    # Seven of 5.1 s, in half of the time: seven seconds for each of five processes.
    profile = calibrate_in_processes("a:b", seconds=72.0)
    assert profile.joules.keys() == set(names)
    read = [len(each.energy.bursts) if each.energy else 0 for each in profile.processes]
    assert sum(read) >= 7
    assert max(read) == 2
    said: list[str] = []
    profile = calibrate_in_processes("a:b", seconds=70.0, say=said.append)
    assert profile.joules == {}
    (line,) = [line for line in said if line.startswith("no joules")]
    assert line.endswith("give --seconds 72 or more")


@pytest.mark.parametrize("field", [74, 269, 270, 271])
def test_passes_in_which_the_card_was_throttled_are_left_out(
    nvml: FakeNvml, monkeypatch, field: int
) -> None:
    gpu = VirtualGpu(nvml, monkeypatch)
    held = 0.0

    def step() -> None:
        nonlocal held
        # A third of each minute.
        is_hot = gpu.seconds % 60 < 20
        gpu.run("step", 0.2 if is_hot else 0.1, 300.0)
        if is_hot:
            held += 0.2e9
            nvml.set(f"field {field}", held)

    found = calibrate({"step": Operation(step)}, 300.0, math.inf)
    assert found.costs["step"].median_seconds == pytest.approx(0.1)
    assert found.costs["step"].spread_seconds == pytest.approx(0, abs=1e-9)
    assert 0.1 < (found.noise.throttled_share or 0) < 0.5
    assert found.noise.warnings == ()
    assert sum((found.noise.throttled_seconds or {}).values()) > 90


def test_a_card_that_is_always_throttled_is_told(nvml: FakeNvml, monkeypatch) -> None:
    gpu = VirtualGpu(nvml, monkeypatch)

    def step() -> None:
        gpu.run("step", 0.1, 700.0)
        nvml.set("field 74", 1e9 * gpu.seconds)

    found = calibrate({"step": Operation(step)}, 30.0, math.inf)
    assert found.noise.throttled_share == 1
    (warning,) = found.noise.warnings
    assert "by software power cap: raise its power limit" in warning


def test_a_throttle_counter_that_steps_back_tells_nothing(nvml: FakeNvml, monkeypatch) -> None:
    gpu = VirtualGpu(nvml, monkeypatch)
    nvml.set("field 269", 5e9)

    def step() -> None:
        gpu.run("step", 0.1, 300.0)
        nvml.set("field 269", 1e9)

    found = calibrate({"step": Operation(step)}, 30.0, math.inf)
    assert found.noise.warnings == ()
    assert found.costs["step"].median_seconds == pytest.approx(0.1)


def test_where_no_card_tells_nothing_is_said_of_throttling(nvml: FakeNvml, monkeypatch) -> None:
    gpu = VirtualGpu(nvml, monkeypatch)
    for device in (0, 1):
        nvml.refuse("fields", NOT_SUPPORTED, device)
    found = calibrate({"step": Operation(gpu.operation("step", 0.1, 1.0))}, 5.0, math.inf)
    assert found.noise.throttled_share is None


def test_a_calibration_says_that_it_left_passes_out(nvml: FakeNvml, monkeypatch) -> None:
    gpu = VirtualGpu(nvml, monkeypatch)

    def step() -> None:
        gpu.run("step", 0.1, 300.0)
        if gpu.seconds % 20 < 5:
            nvml.set("field 269", 1e9 * gpu.seconds)

    in_this_process(monkeypatch, {"step": Operation(step)}, lambda: None)
    said: list[str] = []
    made = calibrate_in_processes("a:b", seconds=600.0, say=said.append)
    share = made.processes[0].noise.throttled_share or 0.0
    assert 0 < share < 1
    assert f"left out {share:.0%} of the passes, in which a GPU was throttled" in said
    assert made.discarded == 0
