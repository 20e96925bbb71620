"""Calibration in fresh processes: real ones, and what is done with what they report."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import warm_python
from tests.support.calibrated_file import SETUP
from tests.support.profiles import MACHINE, SOFTWARE, WORKLOAD, process
from tests.support.waiting import wait_for
from timing import Calibration, CalibrationError, calibrate_in_processes, profile_warnings
from timing.calibration import processes as module
from timing.calibration.target import load
from timing.calibration.timetable import LEAST_SECONDS
from timing.calibration.worker import WorkerRequest, WorkerResult


@pytest.fixture
def setup(tmp_path: Path) -> Path:
    path = tmp_path / "setup_of_sleeps.py"
    path.write_text(SETUP)
    return path


@pytest.mark.slow
def test_each_row_is_of_a_fresh_process(setup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    told: list[tuple[float, str]] = []
    profile = calibrate_in_processes(
        f"{setup}:sleeps",
        {"log": str(log), "batch": 32},
        processes=2,
        seconds=0.4,
        precision=1e9,
        threads=1,
        force=True,
        # Beside other work some are disturbed; none is run in their place.
        retries=0,
        on_progress=lambda done, said: told.append((done, said)),
    )
    lines = [line.split() for line in log.read_text().splitlines()]
    ids = {int(line[0]) for line in lines}
    assert len(ids) == len(lines) == 2
    assert os.getpid() not in ids
    assert {(threads, omp) for _, threads, omp in lines} == {("1", "1")}
    assert len(profile.processes) == 2
    assert profile.workload == {"workload": "sleeps", "batch": 32}
    assert profile.every == {"train_step": 1, "collect": 5}
    assert profile.reference_iteration == {"train_step": 5, "collect": 1}
    assert profile.software.torch_threads == 1
    assert profile.software.omp_num_threads == "1"
    # A sleep never ends early, so this lower bound holds on any machine.
    assert min(profile.seconds.values()) >= 0.002
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (1.0, "done, 0 discarded")


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "broken",
            r"failed \(exit code 1\): \S*of_sleeps\.py, line 25: RuntimeError: there is no such",
        ),
        ("other", r"TypeError: .*:other must return a timing\.CalibrationTarget, not int"),
        ("vague", r"TypeError: .*:vague has shape=\(8, 8\): a signature holds text and numbers"),
        ("missing", r"ValueError: .* has no function 'missing'"),
        ("leaves", r"of_sleeps\.py, line 29: it ends the process \(sys\.exit\): raise an error"),
        ("odd", r"of_sleeps\.py, line 33: BaseException: no Exception"),
        ("crashes", r"failed \(ended by SIGABRT\): it said nothing"),
        ("immense", r"ValueError: flops must be a number of up to 1e\+30"),
    ],
)
def test_a_process_that_fails_is_quoted(setup: Path, function: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as error:
        calibrate_in_processes(f"{setup}:{function}")
    assert error.value.stderr == "this much is known\n" * (function == "broken")


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(setup: Path) -> None:
    with pytest.raises(CalibrationError, match=r"was not done after 0\.5 s and was ended"):
        calibrate_in_processes(f"{setup}:hangs", limit_seconds=0.5)


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_calibrates(setup: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    target, arguments = f"{setup}:waits", {"log": str(log)}
    program = f"import timing; timing.calibrate_in_processes({target!r}, {arguments!r})"
    starter = subprocess.Popen([warm_python.executable(), "-c", program])
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
    child = psutil.Process(int(log.read_text()))
    starter.kill()
    starter.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "'nothing' is neither MODULE:FUNCTION nor"),
        (":f", "':f' is neither"),
        ("..:f", "'..:f' is neither"),
        ("a b:f", "'a b:f' is neither"),
        ("no_such_package.module:f", "there is no module no_such_package.module"),
        ("nowhere.py:f", r"there is no file nowhere\.py"),
        ("json:nothing", "json has no function 'nothing'"),
    ],
)
def test_a_target_that_is_none(target: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=message):
        load(target)
    if target != "json:nothing":
        # What can be seen from outside starts no process.
        monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("it started"))
        with pytest.raises(ValueError, match=message):
            calibrate_in_processes(target)


def test_a_file_does_not_hide_behind_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "json.py"
    path.write_text("def loads(): ...")
    with pytest.raises(ValueError, match="has the name of a module that is in use"):
        load(f"{path}:loads")


def test_wrong_arguments_are_refused_before_a_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("it started"))
    with pytest.raises(ValueError, match="4 processes are too few: the uncertainty lies between"):
        calibrate_in_processes("a:b", processes=4)
    with pytest.raises(ValueError, match="1 processes are too few"):
        calibrate_in_processes("a:b", processes=1, force=True)
    for name in ("seconds", "precision", "threads", "limit_seconds"):
        for wrong in (0, float("nan")):
            with pytest.raises(ValueError, match=f"{name} must be above zero: {wrong}"):
                calibrate_in_processes("a:b", **{name: wrong})
    for name in ("seconds", "threads", "limit_seconds"):
        for wrong in (float("inf"), 1e308):
            with pytest.raises(ValueError, match=f"{name} must be at most "):
                calibrate_in_processes("a:b", **{name: wrong})
    with pytest.raises(ValueError, match="processes must be at most 1000: 999999999999"):
        calibrate_in_processes("a:b", processes=999_999_999_999)


STEADY = {"train_step": 0.01}
LOUD = process(STEADY, warnings=("other processes kept 1.0 cores busy",))
OPEN = process(STEADY, additivity_error=0.2)


def scripted(monkeypatch: pytest.MonkeyPatch, rows: Iterator[Calibration]) -> list[WorkerRequest]:
    """Processes that report what they are told to."""
    requests: list[WorkerRequest] = []

    def run(request: WorkerRequest, _: float) -> WorkerResult:
        requests.append(request)
        return WorkerResult(
            machine=MACHINE,
            software=SOFTWARE,
            workload=WORKLOAD,
            every={"train_step": 1},
            calibration=next(rows),
        )

    monkeypatch.setattr(module, "_run", run)
    return requests


def test_five_quiet_processes_make_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = scripted(monkeypatch, iter([process(STEADY)] * 9))
    profile = calibrate_in_processes("a:b", seconds=100.0)
    assert (len(requests), len(profile.processes), profile.discarded) == (5, 5, 0)
    # Half of the time is left for starting and for the loops timed as a whole.
    assert {request.seconds for request in requests} == {10.0}


def test_three_disturbed_processes_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = process(STEADY)
    scripted(monkeypatch, iter([quiet, LOUD, quiet, OPEN, LOUD, quiet, quiet, quiet]))
    profile = calibrate_in_processes("a:b")
    assert profile.processes == (quiet,) * 5
    assert profile.discarded == 3


def test_a_fourth_is_refused_and_kept_only_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [LOUD, OPEN, LOUD, process(STEADY), OPEN, LOUD, *[process(STEADY)] * 2]
    scripted(monkeypatch, iter(rows))
    with pytest.raises(
        CalibrationError,
        match=r"4 process\(es\) were disturbed, the latest: its additivity error is \+20\.0%",
    ):
        calibrate_in_processes("a:b")
    scripted(monkeypatch, iter(rows))
    profile = calibrate_in_processes("a:b", force=True)
    assert profile.processes == tuple(rows[3:])
    assert profile.discarded == 3
    assert profile_warnings(profile) == (
        "process 2: its additivity error is +20.0%",
        "process 3: other processes kept 1.0 cores busy",
    )


def uneven() -> Iterator[Calibration]:
    """Ten percent up and down."""
    while True:
        yield process({"train_step": 0.011})
        yield process({"train_step": 0.009})


def slow_to_start(monkeypatch: pytest.MonkeyPatch, start_seconds: float) -> list[WorkerRequest]:
    """Quiet processes on a clock on which each takes this long beside its own seconds."""
    requests = scripted(monkeypatch, iter([process(STEADY)] * 99))
    now = 0.0
    run = module._run

    def slow(request: WorkerRequest, limit_seconds: float) -> WorkerResult:
        nonlocal now
        now += start_seconds + request.seconds
        return run(request, limit_seconds)

    monkeypatch.setattr(module, "_run", slow)
    monkeypatch.setattr("timing.calibration.timetable.time.monotonic", lambda: now)
    return requests


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 30.0), st.floats(1.0, 1000.0), st.integers(2, 8))
def test_the_time_is_kept_or_said_to_be_too_short(
    start_seconds: float, seconds: float, processes: int
) -> None:
    said: list[str] = []
    done: list[float] = []

    def told(fraction: float, what: str) -> None:
        done.append(fraction)
        said.append(what)

    with pytest.MonkeyPatch.context() as patched:
        requests = slow_to_start(patched, start_seconds)
        calibrate_in_processes(
            "a:b", processes=processes, seconds=seconds, force=True, on_progress=told
        )
    took = sum(start_seconds + request.seconds for request in requests)
    short = [line for line in said if "since each needs" in line]
    if not short:
        assert took <= 1.5 * seconds + 1e-6
    else:
        # It could not have been kept by measuring for less.
        least = min(LEAST_SECONDS, seconds / (2 * processes))
        assert processes * (start_seconds + least) > 1.4 * seconds
        assert len(requests) == processes
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_what_is_left_of_the_time_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_to_start(monkeypatch, 2.0)
    said: list[str] = []
    calibrate_in_processes("a:b", seconds=100.0, on_progress=lambda _, what: said.append(what))
    # Five processes of 10 s each, and of 3 s to start, before one was seen to take 2.
    assert said[0] == "5 processes or more, about 65 s left, at most 100 s"
    left = [re.findall(r"(?:about|at most) .*", line)[0] for line in said[1:-1]]
    assert left == [
        "about 48 s left, at most 88 s",
        "about 36 s left, at most 76 s",
        "about 24 s left, at most 64 s",
        "about 12 s left, at most 52 s",
        "at most 40 s left",
    ]


def test_a_time_that_is_used_up_leaves_none_for_others_in_place_of_disturbed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = scripted(monkeypatch, iter([LOUD, process(STEADY)]))
    with pytest.raises(
        CalibrationError, match=r"1 process\(es\) were disturbed.*--force \(force=True"
    ):
        calibrate_in_processes("a:b", seconds=1e-9)
    assert len(requests) == 1


def test_more_processes_until_the_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, uneven())
    profile = calibrate_in_processes("a:b", precision=0.05, seconds=600)
    assert len(profile.processes) > 10
    scripted(monkeypatch, uneven())
    wider = calibrate_in_processes("a:b", precision=0.1, seconds=600)
    assert 5 < len(wider.processes) < len(profile.processes)


def test_no_more_once_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, uneven())
    profile = calibrate_in_processes("a:b", precision=0.05, seconds=1e-9)
    assert len(profile.processes) == 5
    (warning,) = profile_warnings(profile)
    assert "the RST of the reference iteration is known to ±13" in warning


def with_probe(cpu_probe_seconds: float) -> Calibration:
    return process(STEADY).model_copy(update={"cpu_probe_seconds": cpu_probe_seconds})


def test_a_processor_found_faster_later_discards_the_disturbed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, free = with_probe(1.9), with_probe(1.0)
    said: list[str] = []
    requests = scripted(monkeypatch, iter([shared, shared, with_probe(1.05), *[free] * 4]))
    profile = calibrate_in_processes("a:b", on_progress=lambda _, what: said.append(what))
    assert profile.processes == (with_probe(1.05), *[free] * 4)
    assert profile.discarded == 2
    assert profile_warnings(profile) == ()
    assert [request.known_probe for request in requests] == [None, 1.9, 1.9, 1.05, 1.0, 1.0, 1.0]
    assert sum("the processor took 1.81 times as long" in what for what in said) == 2


def test_a_disturbed_processor_is_refused_or_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*[with_probe(1.9)] * 4, *[with_probe(1.0)] * 4]
    scripted(monkeypatch, iter(rows))
    with pytest.raises(CalibrationError, match=r"4 process\(es\) were .* took 1\.90 times as long"):
        calibrate_in_processes("a:b")
    scripted(monkeypatch, iter(rows))
    profile = calibrate_in_processes("a:b", force=True)
    assert (len(profile.processes), profile.discarded) == (5, 3)
    (warning,) = profile_warnings(profile)
    assert warning.startswith("process 1: the processor took 1.90 times as long as in the fastest")


def test_enough_quiet_ones_are_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [process({"train_step": 0.01 + i / 1e3}) for i in range(5)]
    scripted(monkeypatch, iter([*rows, LOUD, LOUD, LOUD, LOUD]))
    profile = calibrate_in_processes("a:b", precision=0.001)
    assert profile.processes == tuple(rows)
    assert profile.discarded == 3


def test_processes_that_measure_something_else_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = iter(range(9))

    def run(*_: object) -> WorkerResult:
        workload = {**WORKLOAD, "batch": next(counter)}
        return WorkerResult(
            machine=MACHINE,
            software=SOFTWARE,
            workload=workload,
            every={"train_step": 1},
            calibration=process(STEADY),
        )

    monkeypatch.setattr(module, "_run", run)
    with pytest.raises(CalibrationError, match=r"workload is .*'batch': 0.* and .*'batch': 1"):
        calibrate_in_processes("a:b")


def test_a_machine_that_is_given_memory_meanwhile_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = iter(range(2**30, 2**31, 2**20))

    def run(*_: object) -> WorkerResult:
        return WorkerResult(
            machine=MACHINE.model_copy(update={"memory_bytes": next(sizes)}),
            software=SOFTWARE,
            workload=WORKLOAD,
            every={"train_step": 1},
            calibration=process(STEADY),
        )

    monkeypatch.setattr(module, "_run", run)
    assert calibrate_in_processes("a:b").machine.memory_bytes == 2**30
