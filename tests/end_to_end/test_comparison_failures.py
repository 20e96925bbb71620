"""How a comparison ends that did not go well: its table, one line, and what goes on from there."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.cli.app import app
from baselines.experiment.comparison import compare
from baselines.experiment.kept import read_comparison
from baselines.experiment.manifest import FolderError
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, check_kept, write_or_verify
from baselines.methods.names import find
from baselines.workloads import load
from tests.support.commands import Command
from tests.support.kept_comparison import PROFILE, results
from tests.support.profiles import profile_of
from tests.support.stores import empty_store
from tests.support.trainings import COSTS
from tests.support.user_files import SCHEDULE, averager
from tests.support.waiting import wait_for
from timing import Budget
from timing.cli import commandline

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
mlflow = pytest.importorskip("mlflow")

METHODS = "constant,lawa,decayed"


def plan_of(budget_seconds: float, methods: str = METHODS) -> Plan:
    """What the command of `start` asks for."""
    found = map(find, methods.split(","))
    chosen = tuple(m.with_settings({"lawa.k": 3} if "lawa.k" in m.settings else {}) for m in found)
    return Plan(load("digits"), chosen, (0, 1), Budget(budget_seconds), 0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all; each test has an experiment of its own."""
    return empty_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _in_store(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)


def start(folder: Path, *options: str, methods: str = METHODS) -> Command:
    windows = "lawa" in methods
    profile = PROFILE if windows else profile_of([COSTS], plan_of(1.0, "constant").signature)
    profile.write(folder / "reference.json")
    common = f"--workload digits --seeds 2 --methods {methods} --reference reference.json"
    common += " --set lawa.k=3" if windows else ""
    # The later of two that are alike holds.
    words = (*common.split(), "--lr", "0.05", *options)
    environment = {**os.environ, "COLUMNS": "200"}
    return Command(folder, "baselines", "compare", *words, environment=environment)


def end(command: Command) -> tuple[int, str, str]:
    done = command.end()
    return done.returncode, done.stdout, done.stderr


def only(folder: Path) -> Path:
    """The folder of the only comparison."""
    (root,) = (folder / "lawa-runs").iterdir()
    return root


def in_mlflow(folder: Path) -> dict[str, Any]:
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(folder.name)
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["lawa_opt.run"].rpartition("/")[0] or "parent": run for run in found}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the command has it, since results depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_process_leaves_the_table_with_its_runs_marked(tmp_path: Path) -> None:
    """The first run of the first seed, before it has measured anything."""
    options = ("--budget", "1s", "--jobs", "2")
    command = start(tmp_path, *options)
    held: list[str] = []
    while not held:
        assert command.poll() is None, end(command)
        for lock in tmp_path.glob("lawa-runs/*/1s/constant-seed-0/lock"):
            held = lock.read_text().split()
        time.sleep(0.005)
    os.kill(int(held[1]), signal.SIGKILL)
    status, out, err = end(command)
    assert status == 1
    assert err == (
        "error: 2 of 6 runs under 1 s did not end (constant, seed 0; lawa, seed 0); the same "
        "command goes on with what did not end\n"
    )
    for method in ("constant", "lawa"):
        assert f"{method}, seed 0: FAILED after 0 steps, 0.000 s RST: its process was killed" in out
    rows = [line for line in out.splitlines() if " LAWA of the constant rate " in line]
    assert sum(row.count("(1 of 2 failed)") for row in rows) == 3
    assert "With 1 of 2 seeds the constant rate failed, so there was none" in " ".join(out.split())
    assert "viewStateShareKey=" in out.splitlines()[-1]

    found = in_mlflow(tmp_path)
    assert {name: run.info.status for name, run in found.items()} == {
        "parent": "FAILED",
        "constant/0": "FAILED",
        "lawa/0": "FAILED",
        **dict.fromkeys(("constant/1", "lawa/1", "decayed/0", "decayed/1"), "FINISHED"),
    }
    assert "(1 of 2 failed)" in found["parent"].data.tags["mlflow.note.content"]

    status, out, err = end(start(tmp_path, *options))
    assert (status, err) == (0, "")
    assert "failed" not in out
    done = read_comparison(only(tmp_path))
    assert results(done) == results(compare(plan_of(1), PROFILE))
    found = in_mlflow(tmp_path)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    # Nor is what was told of the killed runs left behind in theirs.
    for run in done.runs:
        told = found[f"{run.method}/{run.seed}"].data.metrics
        assert told["work/rst_seconds"] == run.rst_seconds
        assert told["work/steps"] == run.steps
        assert told["final/metric"] == run.final


RAISES = averager("""
    steps = 0
    def after_step(self, spent):
        self.steps += 1
        if self.steps == 20 and not Path("mended").exists():
            raise RuntimeError("the disk of my data is away")
""")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_training_that_raises_fails_the_command_with_and_without_jobs(
    jobs: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(RAISES)
    methods = "constant,mine.py"
    options = ("--budget", "0.5s", "--seeds", "1", "--jobs", jobs, "--no-publish")
    status, out, err = end(start(tmp_path, *options, methods=methods))
    assert status == 1
    # Before it, the traceback of the user's own code.
    assert err.splitlines()[-1] == (
        "error: 1 of 2 runs under 0.5 s did not end (mine.py, seed 0); the same command goes on "
        "with what did not end"
    )
    assert re.search(r"mine\.py, seed 0: FAILED after .*: the disk of my data is away", out)
    assert re.search(r" mine of the constant rate +no run ended +no run ended", out)
    (tmp_path / "mended").touch()
    status, out, err = end(start(tmp_path, *options, methods=methods))
    assert (status, err) == (0, "")
    assert "FAILED" not in out


def test_where_every_run_diverged_the_command_and_its_parent_have_failed(tmp_path: Path) -> None:
    command = start(tmp_path, "--budget", "0.5s", "--lr", "1e6")
    status, out, err = end(command)
    assert status == 1
    assert re.fullmatch(
        r"error: every run failed under 0.5 s: constant, seed 0: the .* lower the rate\n", err
    )
    assert out.count("no run ended") > 2
    found = in_mlflow(tmp_path)
    assert {run.info.status for run in found.values()} == {"FAILED"}
    assert "no run ended" in found["parent"].data.tags["mlflow.note.content"]


DIVERGES = SCHEDULE.format("1e9")


def test_a_run_that_diverges_by_itself_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DIVERGES)
    status, out, err = end(start(tmp_path, "--budget", "0.5s", methods="constant,mine.py"))
    assert (status, err) == (0, "")
    assert re.search(r"mine\.py, seed 0: FAILED after .*: lower the rate", out)
    found = in_mlflow(tmp_path)
    assert found["parent"].info.status == "FINISHED"
    assert found["mine.py/1"].info.status == "FAILED"


REMOVES = averager("""
    def after_step(self, spent):
        shutil.rmtree("lawa-runs", ignore_errors=True)
""")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_folder_that_is_removed_meanwhile_is_told(jobs: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REMOVES)
    options = ("--budget", "0.5s", "--jobs", jobs, "--no-publish")
    status, _, err = end(start(tmp_path, *options, methods="mine.py,constant"))
    assert status == 1
    assert "removed" in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_what_was_removed_after_it_was_written_is_told(tmp_path: Path) -> None:
    plan = plan_of(0.2)
    folder = budget_folder(tmp_path, plan)
    done = resume(plan, PROFILE, folder)
    key = write_or_verify(folder, plan).id
    check_kept(folder, key, done)
    with pytest.raises(FolderError, match="was removed in whole or in part"):
        check_kept(folder, "another", done)
    (folder / "decayed-seed-1" / "events.jsonl").unlink()
    with pytest.raises(FolderError, match=r"decayed-seed-1/events\.jsonl is gone"):
        check_kept(folder, key, done)
    shutil.rmtree(folder)
    with pytest.raises(FolderError, match=r"comparison.json is gone|events.jsonl is gone"):
        check_kept(folder, key, done)


def test_a_damaged_profile_of_a_comparison_is_one_line_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = start(tmp_path, "--budget", "0.2s", "--no-publish")
    wait_for(lambda: list(tmp_path.glob("lawa-runs/*/reference.json")))
    command.kill()
    end(command)
    profile = only(tmp_path) / "reference.json"
    whole = profile.read_text()
    other = json.loads(whole)
    other["processes"][0]["costs"]["train_step"]["median_seconds"] *= 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["baselines", *list(command.args)[3:]])
    for damaged in (whole[:100], "{}", json.dumps(other)):
        profile.write_text(damaged)
        with pytest.raises(SystemExit) as stop:
            commandline.run(app)
        assert stop.value.code == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "reference.json" in err
        assert err.endswith(f"or remove {only(tmp_path).relative_to(tmp_path)} to start anew\n")


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_an_interrupt_is_one_line(number: signal.Signals, jobs: str, tmp_path: Path) -> None:
    command = start(tmp_path, "--budget", "300s", "--jobs", jobs)
    wait_for(lambda: list(tmp_path.glob("lawa-runs/*/300s/constant-seed-0/*")))
    time.sleep(1)
    command.send_signal(number)
    status, _, err = end(command)
    assert (status, err) == (128 + number, "interrupted\n")
    assert in_mlflow(tmp_path)["parent"].info.status == "KILLED"
