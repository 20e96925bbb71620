"""A training that ran elsewhere, in the RST of a reference: exact, estimated, or refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.profiles import ROWS, WORKLOAD, profile, profile_of
from timing import Account, MeasuredRun, ProfileError, RunError, StepTimer, map_run, rst_interval
from timing.cli.app import app
from timing.cli.commandline import run as run_command
from timing.mapping.measured_run import MeasuredOperation
from timing.statistics import prediction_interval


def run_of(**operations: tuple[int, float | None]) -> MeasuredRun:
    measured = {
        name: MeasuredOperation(count=count, median_seconds=seconds)
        for name, (count, seconds) in operations.items()
    }
    return MeasuredRun(workload=dict(WORKLOAD), operations=measured)


@pytest.mark.slow
@given(st.integers(1, 10**6), st.integers(1, 10**3), st.floats(1e-6, 10.0))
def test_it_is_exact_where_the_reference_has_all_whatever_it_took(
    steps: int, evaluations: int, here: float
) -> None:
    run = run_of(train_step=(steps, here), evaluate=(evaluations, None))
    for policy in ("algoperf", "mlperf"):
        mapped = map_run(run, profile(), policy)
        account = Account(profile().seconds, policy)
        account.charge("train_step", steps)
        account.charge("evaluate", evaluations)
        known = rst_interval(account.counts, profile(), policy)
        assert mapped.is_exact
        assert mapped.rst.estimate == pytest.approx(account.rst_seconds, rel=1e-12)
        assert mapped.rst.high - mapped.rst.low == pytest.approx(known.high - known.low)


def test_what_the_reference_lacks_is_estimated_by_what_it_has() -> None:
    rows = [{**row, "score": 0.003, "collect": 0.0004} for row in ROWS]
    run = run_of(
        train_step=(100, 0.02), score=(50, 0.004), collect=(10, 0.001), ema_update=(70, 0.01)
    )
    mapped = map_run(run, profile_of(rows))
    # The naive twin.
    medians = profile_of(rows).seconds
    logs = np.log([medians["train_step"] / 0.02, 0.003 / 0.004, 0.0004 / 0.001])
    ratio = np.exp(logs.mean())
    exact = 100 * medians["train_step"] + 50 * 0.003 + 10 * 0.0004
    assert not mapped.is_exact
    assert mapped.operations["ema_update"].is_estimate
    assert mapped.operations["ema_update"].reference_seconds == pytest.approx(ratio * 0.01)
    assert mapped.rst.estimate == pytest.approx(exact + 70 * ratio * 0.01)
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) * math.sqrt(1 + 1 / 3)
    known = rst_interval({"train_step": 100, "score": 50, "collect": 10}, profile_of(rows))
    upper = exact + (known.high - known.estimate) + 0.7 * np.exp(logs.mean() + half)
    assert mapped.rst.high == pytest.approx(upper)
    assert 0 <= mapped.rst.low < mapped.rst.estimate


def test_one_operation_alone_gives_no_interval() -> None:
    run = run_of(train_step=(100, 0.02), ema_update=(70, 0.01))
    mapped = map_run(run, profile())
    assert mapped.operations["ema_update"].reference_seconds == pytest.approx(0.005)
    assert mapped.rst.high == math.inf


def test_what_is_not_charged_widens_nothing() -> None:
    run = run_of(train_step=(100, 0.02), load_data=(70, None))
    mapped = map_run(run, profile())
    assert mapped.is_exact
    assert mapped.operations["load_data"].reference_seconds is None
    assert mapped.rst.estimate == pytest.approx(100 * profile().seconds["train_step"])
    assert mapped.rst.high < math.inf


def test_other_workloads_and_operations_are_refused() -> None:
    run = run_of(train_step=(100, 0.02))
    other = run.model_copy(update={"workload": {**WORKLOAD, "batch": 32}})
    with pytest.raises(ProfileError, match="measured with batch=64 and this run has batch=32"):
        map_run(other, profile())
    with pytest.raises(ProfileError, match="has none of the run's operations, hessian"):
        map_run(run_of(hessian=(1, 0.1)), profile())
    with pytest.raises(RunError, match="no cost for 'hessian', and the run has no median of it"):
        map_run(run_of(train_step=(1, 0.1), hessian=(1, None)), profile())
    with pytest.raises(RunError, match="no operation was measured that the reference has"):
        map_run(run_of(train_step=(1, None), hessian=(1, 0.1)), profile())


@pytest.mark.slow
def test_one_more_value_is_in_its_interval_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        *values, one_more = rng.normal(size=5)
        found = prediction_interval(list(values), 0.9)
        inside += found.low <= one_more <= found.high
    assert 0.88 < inside / 2000 < 0.92


def test_a_timer_gives_counts_and_medians(tmp_path: Path) -> None:
    timer = StepTimer(warm_up=2)
    with pytest.raises(RunError, match="the timer saw no pass"):
        MeasuredRun.of(timer, WORKLOAD)
    for _ in range(5):
        with timer("train_step"):
            sum(range(1000))
    with timer("collect"):
        pass
    run = MeasuredRun.of(timer, WORKLOAD)
    run.write(str(tmp_path / "run.json"))
    assert MeasuredRun.read(str(tmp_path / "run.json")) == run
    step = run.operations["train_step"]
    assert (step.count, step.median_seconds) == (5, timer.phases()["train_step"].median_seconds)
    # Of its warm-up alone there is no median, and no zero.
    assert run.operations["collect"] == MeasuredOperation(count=1, median_seconds=None)


def mapped_by_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: MeasuredRun | str, *options: str
) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    profile().write("reference.json")
    text = run if isinstance(run, str) else run.model_dump_json()
    Path("run.json").write_text(text)
    arguments = ["timing", "map", "run.json", "--reference", "reference.json", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        run_command(app)
    return int(stop.value.code or 0)


def test_the_command_prints_what_it_maps(monkeypatch, capsys, tmp_path: Path) -> None:
    run = run_of(train_step=(100, 0.02), evaluate=(4, None), swap=(100, 0.004))
    assert mapped_by_command(monkeypatch, tmp_path, run) == 0
    out = capsys.readouterr().out
    mapped = map_run(run, profile())
    assert f"RST by policy algoperf: {mapped.rst} s (95% interval), AN ESTIMATE" in out
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "not measured │ 200.0000 ms │" in lines["evaluate"]
    assert "not charged by algoperf" in lines["evaluate"]
    assert "2.0000 ms │            0.500 │" in lines["swap"]
    assert "estimated" in lines["swap"]
    exact = run_of(train_step=(100, 0.02))
    assert mapped_by_command(monkeypatch, tmp_path, exact, "--policy", "mlperf") == 0
    out = capsys.readouterr().out
    assert "by policy mlperf: 1 [0.9" in out
    assert "exact in its operations" in out


WHOLE = json.loads(run_of(train_step=(1, 0.1)).model_dump_json())
BAD = {
    "{}": "run.json is no measured run: workload: Field required",
    "": "run.json is not JSON",
    "[" * 100_000: "run.json is no measured run: it is nested too deeply",
    json.dumps({**WHOLE, "operations": {}}): "operations: Dictionary should have at least 1 item",
    json.dumps({**WHOLE, "operations": {"train_step": {}}}): "operations.train_step.count: Field",
    json.dumps({**WHOLE, "operations": {"train_step": {"count": 0}}}): "greater than or equal to 1",
    json.dumps({**WHOLE, "operations": {"a": {"count": 1, "median_seconds": -1}}}): "greater than",
    json.dumps({**WHOLE, "operations": {"hessian": {"count": 1}}}): "none of the run's operations",
}


@pytest.mark.parametrize("text", BAD, ids=list(BAD.values()))
def test_what_is_no_run_is_one_line(monkeypatch, capsys, tmp_path: Path, text: str) -> None:
    assert mapped_by_command(monkeypatch, tmp_path, text) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert BAD[text] in captured.err


def test_a_run_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    profile().write("reference.json")
    arguments = ["timing", "map", "nowhere.json", "--reference", "reference.json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        run_command(app)
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == "error: Invalid value: nowhere.json: No such file or directory\n"
    )
