"""`python -m timing`, run for real."""

import json
import platform
import sys
from pathlib import Path

import pytest
import torch

from tests.support.calibrated_file import SETUP
from tests.support.fake_nvml import NO_PERMISSION, FakeNvml
from tests.support.profiles import ROWS, WORKLOAD, process, profile, profile_of, with_watts
from timing import MeasuredRun, Profile, rse_interval, rst_interval, this_machine
from timing.calibration.uncertainty import operation_ratio
from timing.cli.app import app
from timing.cli.commandline import run
from timing.mapping.measured_run import MeasuredOperation


def timing(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["timing", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(app)
    return int(stop.value.code or 0)


def test_probe_prints_this_machine(monkeypatch, capsys) -> None:
    assert timing(monkeypatch, "probe") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"] == this_machine().model_dump(mode="json")
    measured = printed["measured"]
    assert measured["host"]["steps"].startswith("time.perf_counter")
    energy = measured["host"]["energy of the processors"]
    assert energy == "available" or energy.startswith("no joules of the processors: ")
    assert bool(measured["gpus"]) or "NVML" in measured["unavailable"]


def test_probe_says_what_each_gpu_can_tell(monkeypatch, capsys, nvml: FakeNvml) -> None:
    nvml.refuse("power", NO_PERMISSION, device=1)
    assert timing(monkeypatch, "probe") == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["unavailable"] is None
    one = measured["gpus"]["NVIDIA Fake A (GPU-aaaa)"]
    assert one["power"] == "available"
    assert one["process accounting"] == "not available: Not Supported"
    assert one["performance monitor"] == "not available: this card has none"
    other = measured["gpus"]["NVIDIA Fake B (GPU-bbbb)"]
    assert other["power"] == "not available: Insufficient Permissions"
    assert set(one) == set(other)


def test_show_prints_all_that_a_profile_says(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "reference.json"
    noisy = process(
        ROWS[0], additivity_error=0.07, warnings=("other processes kept 1.0 cores busy",)
    )
    noise = noisy.noise.model_copy(update={"disturbed_share": 0.31})
    noisy = noisy.model_copy(update={"noise": noise})
    rows = [*(process(row, additivity_error=-0.012) for row in ROWS), noisy]
    made = profile_of(rows, every={"train_step": 1, "evaluate": 40})
    made = made.model_copy(update={"workload": {**made.workload, "flops_per_step": 5_000_000}})
    made.write(path)
    assert timing(monkeypatch, "show", str(path)) == 0
    out = capsys.readouterr().out
    for expected in (
        "│ train_step │  10.0000 ms │ ",
        "train_step: 5,000,000 FLOPs by PyTorch's counter, 0.5 GFLOP/s",
        "additivity error: -1.2% (by process: -1.2%, -1.2%, -1.2%, -1.2%, -1.2%, +7.0%)\n",
        "processes: 6, and 0 discarded; other processes kept up to 0.03 cores busy; the processor "
        "was slowed down from outside in up to 31% of the passes",
        f"reference iteration: {rst_interval(made.reference_iteration, made, 'mlperf')} s charged",
        f"software: python={platform.python_version()}, torch={torch.__version__}",
        "workload: workload=digits, batch=64, k=5",
        "WARNING: process 6: other processes kept 1.0 cores busy",
        "WARNING: process 6: its additivity error is +7.0%",
    ):
        assert expected in out
    profile().write(path)
    assert timing(monkeypatch, "show", str(path)) == 0
    out = capsys.readouterr().out
    assert "no warnings about this profile" in out
    assert "WARNING" not in out


def test_show_prints_joules_where_there_are_any(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "reference.json"
    rows = [with_watts(process(each), train_step=400.0, evaluate=100.0) for each in ROWS]
    noise = rows[0].noise.model_copy(update={"throttled_share": 0.12})
    rows[0] = rows[0].model_copy(update={"noise": noise})
    made = profile_of(rows)
    made.write(path)
    assert timing(monkeypatch, "show", str(path)) == 0
    out = capsys.readouterr().out
    known = rse_interval(made.reference_iteration, made, "mlperf")
    # Of 10 ms at 400 W, and of 0.2 s at 100 W.
    for expected in (
        "│    4 J │",
        "│   20 J │",
        f"energy: joules of NVIDIA A, whoever used them; a reference iteration is {known} J\n",
        "and a GPU was throttled in up to 12% of them",
        "WARNING: its joules were not held against those of a loop: give the calibration more time",
    ):
        assert expected in out
    part = profile_of([with_watts(process(each), evaluate=100.0) for each in ROWS])
    part.write(path)
    assert timing(monkeypatch, "show", str(path)) == 0
    out = capsys.readouterr().out
    assert "│ not read │" in out
    assert "WARNING: no joules of train_step were read: what runs them has no RSE" in out


def test_map_says_rse_where_the_reference_has_all_joules(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    ran = {"train_step": MeasuredOperation(count=30), "evaluate": MeasuredOperation(count=2)}
    MeasuredRun(workload=WORKLOAD, operations=ran).write(tmp_path / "run.json")
    path = tmp_path / "reference.json"
    for watts, said in (({"train_step": 400.0}, True), ({"evaluate": 100.0}, False)):
        made = profile_of([with_watts(process(each), **watts) for each in ROWS])
        made.write(path)
        command = ("map", str(tmp_path / "run.json"), "--reference", str(path))
        assert timing(monkeypatch, *command) == 0
        out = capsys.readouterr().out
        assert ("RSE by policy algoperf: " in out) == said
        if said:
            known = rse_interval({"train_step": 30}, made)
            assert f"RSE by policy algoperf: {known} J of NVIDIA A (95% interval)" in out


@pytest.mark.parametrize("command", [["show"], ["compare"]])
def test_what_is_no_profile_is_refused(monkeypatch, capsys, tmp_path: Path, command) -> None:
    path = tmp_path / "reference.json"
    path.write_text("{}")
    arguments = [*command, str(path)] + [str(path)] * (command == ["compare"])
    assert timing(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "is no reference profile of version 3" in captured.err


def compared(monkeypatch, tmp_path: Path, *profiles: Profile) -> int:
    monkeypatch.setenv("COLUMNS", "200")
    for path, made in zip("ab", profiles, strict=True):
        made.write(tmp_path / path)
    return timing(monkeypatch, "compare", str(tmp_path / "a"), str(tmp_path / "b"))


def test_compare_prints_ratios_with_intervals(monkeypatch, capsys, tmp_path: Path) -> None:
    faster = [{"train_step": r["train_step"] / 2, "evaluate": r["evaluate"]} for r in ROWS]
    other = profile_of([{**row, "collect": 0.001} for row in faster])
    software = other.software.model_copy(update={"torch": "2.9.0"})
    other = other.model_copy(update={"software": software})
    assert compared(monkeypatch, tmp_path, profile(), other) == 0
    out = capsys.readouterr().out
    ratio = operation_ratio("train_step", profile(), other)
    assert f"│ 0.500 │ {ratio.low:.3f} to {ratio.high:.3f} │" in out
    assert ratio.low < 0.5 < ratio.high
    assert "│ 1.000 │" in out
    assert f"software that differs: torch: {torch.__version__} and 2.9.0" in out
    assert "b alone: collect" in out
    assert "no warnings about this comparison" in out


def test_compare_warns_of_an_operation_out_of_line(monkeypatch, capsys, tmp_path: Path) -> None:
    slip = [{"a": 0.01, "b": 0.02, "c": 0.003} for _ in ROWS]
    sound = [{"a": 0.02, "b": 0.05, "c": 0.06} for _ in ROWS]
    assert compared(monkeypatch, tmp_path, profile_of(slip), profile_of(sound)) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "WARNING: c: its ratio of 20 is far from the operations' median of 2.5"
    )


def test_compare_refuses_other_workloads(monkeypatch, capsys, tmp_path: Path) -> None:
    other = profile_of(ROWS, {**WORKLOAD, "batch": 32})
    assert compared(monkeypatch, tmp_path, profile(), other) == 2
    captured = capsys.readouterr()
    assert "are of different workloads (batch: 64 and 32)" in captured.err
    assert captured.out == ""
    nothing_shared = profile_of([{"swap": 1.0}])
    assert compared(monkeypatch, tmp_path, profile(), nothing_shared) == 2
    assert "have no operation in common" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_calibrate_writes_a_profile(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("setup_of_sleeps.py").write_text(SETUP)
    options = "--argument log=log --argument batch=16 --out here.json --processes 2 --seconds 0.4"
    done = timing(
        monkeypatch,
        *("calibrate", "setup_of_sleeps.py:sleeps", *options.split(), "--precision", "99"),
        "--force",
    )
    captured = capsys.readouterr()
    assert (done, captured.err) == (0, "")
    made = Profile.read(Path("here.json"))
    assert made.workload == {"workload": "sleeps", "batch": 16}
    assert len(made.processes) == 2
    assert "2 process(es): " in captured.out
    assert "WARNING: 2 process(es): at least 5 are needed" in captured.out
    assert {path.name for path in tmp_path.iterdir()} >= {"here.json", "log"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_calibration_that_fails_is_one_line_after_what_was_said(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("setup_of_sleeps.py").write_text(SETUP)
    arguments = ("calibrate", "setup_of_sleeps.py:broken", "--out", "here.json")
    assert timing(monkeypatch, *arguments) == 1
    *said, last = capsys.readouterr().err.strip().splitlines()
    assert said == ["this much is known"]
    assert last.startswith("error: a process that calibrates setup_of_sleeps.py:broken failed")
    assert last.endswith("setup_of_sleeps.py, line 25: RuntimeError: there is no such data set")
    assert not Path("here.json").exists()


WRONG = {
    "--out here.json --argument batch": "--argument must be KEY=VALUE: 'batch'",
    "--out here.json --argument 1=2": "--argument must be KEY=VALUE: '1=2'",
    "--out here.json --argument a=1 --argument a=2": "--argument names a key twice",
    "--out nowhere/here.json": "--out: nowhere/here.json cannot be written",
    "--out .": "--out: . cannot be written",
    "--out here.json --processes 4": "4 processes are too few",
    "--out here.json --seconds 0": "seconds must be above zero: 0",
    "--out here.json --limit 0": "limit_seconds must be above zero: 0",
    "--out here.json --threads 0": "threads must be above zero: 0",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_of_calibrate_are_one_line(
    monkeypatch, capsys, tmp_path: Path, options: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert timing(monkeypatch, "calibrate", "a:b", *options.split()) == 2
    err = capsys.readouterr().err
    assert WRONG[options] in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
