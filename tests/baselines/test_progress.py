"""What a command says while it runs: phases, time left, warnings a line a kind, and free cores."""

import dataclasses
import re
from typing import Any

import psutil
import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.cli import console as screen
from baselines.cli import options, progress, session
from baselines.cli.duration import CALIBRATING, phases_of, training_of
from baselines.cli.progress import Course, duration
from baselines.experiment import calibration
from baselines.experiment.processes import free_core_count
from tests.support.comparisons import CURVES, comparison
from tests.support.profiles import ROWS, profile_of
from timing import Budget, Profile
from timing.calibration.timetable import LEAST_SECONDS, START_SECONDS
from timing.calibration.warnings import LEAST_PROCESSES, by_kind


def test_warnings_of_one_kind_are_one_line() -> None:
    found = by_kind(
        [
            "the RST of the reference iteration is known to ±6.4% only: give it more time",
            "process 1: other processes kept 1.5 cores busy: close them",
            "process 2: other processes kept 0.3 cores busy: close them",
            "process 5: other processes kept 1.9 cores busy: close them",
            "process 3: its additivity error is -16.6%",
            "train_step: 4.3 times as long in one process as in another (0.004 to 0.01 s)",
            "evaluate: 4.9 times as long in one process as in another (0.0035 to 1.7e-05 s)",
        ]
    )
    assert found == [
        "the RST of the reference iteration is known to ±6.4% only: give it more time",
        "processes 1, 2, 5: at worst, other processes kept 1.9 cores busy: close them",
        "process 3: its additivity error is -16.6%",
        "train_step, evaluate: at worst, 4.9 times as long in one process as in another (0.0035 to "
        "1.7e-05 s)",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "5 s"), (12, "10 s"), (54, "55 s"), (80, "1.5 min"), (274, "4.5 min"), (9000, "2.5 h")],
)
def test_a_length_of_time_is_said_as_one_says_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (screen, progress):
        monkeypatch.setattr(module, "console", rich.console.Console(width=80, markup=False))


def test_a_pipe_gets_a_line_a_phase_and_one_now_and_then(
    piped: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    with Course({"calibrating": 60.0, "training": 240.0}) as course:
        course.begin("calibrating")
        course.begin("training")
        course.update(0.5, "lawa, seed 1")
        assert course._has_ended.wait(0.2) is False
    lines = capsys.readouterr().out.splitlines()
    started = [line for line in lines if "%" not in line]
    assert started == ["calibrating: about 5 min left", "training: about 4 min left"]
    later = [line for line in lines if line not in started]
    assert later
    assert re.fullmatch("training: 50%, about .* left", later[-1])


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as the one element; it stands still but for the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def course(piped: None, now: list[float]) -> Course:
    """Two phases, the first of which has just begun."""
    course = Course({"a": 60.0, "b": 40.0})
    course.begin("a")
    return course


def test_the_time_left_follows_the_pace_once_there_is_one(course: Course, now: list[float]) -> None:
    now[0] += 20
    course.update(0.05)
    assert course.seconds_left == pytest.approx(40 + 40)
    # A quarter took 20 s, so the rest takes 60.
    course.update(0.25)
    assert course.seconds_left == pytest.approx(60 + 40)
    course.expect("b", 10.0)
    assert course.seconds_left == pytest.approx(60 + 10)
    course.begin("b")
    assert course.seconds_left == pytest.approx(10)


def test_an_expectation_that_is_over_is_not_said_for_ever(course: Course, now: list[float]) -> None:
    now[0] += 300
    assert course._left() == "not done in the 1 min expected"
    # A twentieth took five minutes.
    course.update(0.05)
    assert course.seconds_left == pytest.approx(19 * 300 + 40)
    assert course._left() == "about 96 min left"


def test_a_command_expects_its_trainings_side_by_side_and_a_calibration_if_there_is_none() -> None:
    made = comparison(CURVES)
    name = training_of(made.plan)
    alone = phases_of([made.plan], None, 1)
    both = phases_of([made.plan], None, 2)
    assert list(alone) == [CALIBRATING, name]
    assert both[name] == pytest.approx(alone[name] / 2)
    assert both[CALIBRATING] == pytest.approx(alone[CALIBRATING], rel=0.2)
    assert list(phases_of([made.plan], made.profile, 1)) == [name]


def test_a_core_that_is_busy_is_not_free_and_one_job_always_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("timing.limits.cores", lambda: None)
    monkeypatch.setattr("timing.limits.core_count", lambda: 3)
    for busy, free in (([0, 10, 90, 30], 3), ([90, 60, 20, 95], 1), ([99] * 4, 1), ([0] * 4, 3)):
        monkeypatch.setattr(psutil, "cpu_percent", lambda *_, busy=busy, **__: busy)
        assert free_core_count() == free
    plans = [comparison(CURVES).plan]
    assert options.jobs(None, plans, None, 1) == 3
    assert options.jobs(None, plans, None, 2) == 1
    assert options.jobs(None, plans, "slurm", 1) == 1
    assert options.jobs(7, plans, None, 1) == 7


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 1e5), st.integers(1, 16))
def test_a_calibration_is_a_fifth_of_the_whole_or_the_fewest_processes(
    budget_seconds: float, jobs: int
) -> None:
    plan = dataclasses.replace(comparison(CURVES).plan, budget=Budget(budget_seconds))
    own = calibration.effort(plan, jobs)
    trained = calibration.training_seconds_of(plan) / jobs
    fewest = calibration.FEWEST_PROCESSES * (START_SECONDS + LEAST_SECONDS)
    assert own.seconds <= max(fewest, (trained + own.seconds) / 5) * (1 + 1e-9)
    assert calibration.FEWEST_PROCESSES <= own.processes <= LEAST_PROCESSES
    # Each process has the time to start, and to measure.
    assert own.processes * (START_SECONDS + LEAST_SECONDS) <= own.seconds * (1 + 1e-9)


@pytest.mark.parametrize(("budget_seconds", "processes"), [(0.5, 3), (60.0, 5)])
def test_a_small_calibration_is_said_in_a_line(
    budget_seconds: float,
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def measure(*_: object, **options: Any) -> Profile:
        asked.update(options)
        options["say"]("no joules of A: no energy counter: Not Supported")
        return profile_of(ROWS)

    monkeypatch.setattr(calibration, "calibrate_in_processes", measure)
    made = comparison(CURVES).plan
    workload = dataclasses.replace(made.workload, source=("digits", None))
    plan = dataclasses.replace(made, workload=workload, budget=Budget(budget_seconds))
    with Course({}) as course:
        session.calibrated(plan, course, jobs=1)
    own = calibration.effort(plan)
    assert (asked["processes"], asked["seconds"]) == (processes, own.seconds)
    said = "A small calibration for a small budget: 3 processes, about 10 s, so the reference is"
    out = capsys.readouterr().out
    assert (said in out) == (processes < LEAST_PROCESSES)
    assert "  no joules of A: no energy counter: Not Supported\n" in out
