"""What is published reaches a real MLflow store, whatever was done to the store or the folder."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import command
from tests.support.in_mlflow import history, runs_of
from tests.support.published import (
    FIRST,
    METHODS,
    assert_all_is_there,
    client_of,
    points_of,
    publish,
    trained_without_mlflow,
)
from tests.support.stores import empty_store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose experiment is deleted."""
    folder = tmp_path_factory.mktemp("deleted") / "project"
    shutil.copytree(trained_without_mlflow(), folder)
    empty_store(folder)
    # MLflow keeps files where the experiment was made from.
    with contextlib.chdir(folder):
        client = client_of(folder)
        client.delete_experiment(client.create_experiment("lawa-opt"))
    return folder


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    """What a comparison says that MLflow takes nothing of."""
    done = command(home, *FIRST)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sent(home: Path, first: object) -> list[subprocess.CompletedProcess[str]]:
    """What sending it said before the experiment was restored, and after."""
    before = publish(home)
    client_of(home).restore_experiment("1")
    return [before, publish(home)]


def test_a_deleted_experiment_is_said_with_its_remedy_and_gets_all_once_restored(
    home: Path, first: subprocess.CompletedProcess[str], sent: list
) -> None:
    said = (
        "(the experiment 'lawa-opt' is deleted: restore it with MLFLOW_DISABLE_TELEMETRY=true "
        "python -m mlflow experiments restore --experiment-id 1, or name another one in "
        "MLFLOW_EXPERIMENT_NAME)"
    )
    (line,) = (line for line in first.stdout.splitlines() if "Not all is in MLflow" in line)
    assert said in line
    before, after = sent
    assert before.returncode == 1
    assert said[1:-1] in before.stderr
    assert before.stdout == ""
    assert after.returncode == 0, after.stderr
    points = sum(map(len, points_of(home).values()))
    assert after.stdout.splitlines()[0] == (
        f"Published to the experiment 'lawa-opt' of sqlite:///{home}/mlflow.db: {len(METHODS)} "
        f"runs with {points} points."
    )
    assert_all_is_there(client_of(home), home)


def test_what_is_called_live_or_averaged_is_so(home: Path, sent: list) -> None:
    client = client_of(home)
    runs, kept = runs_of(client), points_of(home)
    steps_live: dict[str, list[int]] = {}
    for method in METHODS:
        run = runs[f"{method}, seed 0"]
        live, averaged = (
            history(client, run, f"validation/{weights}") for weights in ("live", "averaged")
        )
        assert live + averaged == kept[f"{method}, seed 0"]
        steps_live[method] = [step for step, _ in live]
        (model,) = client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        weights = "averaged" if averaged else "live"
        assert model.name == f"{weights} {method.replace('.', '-')} 0"
    ends = {method: kept[f"{method}, seed 0"][-1][0] for method in METHODS}
    for method in ("constant", "live.py", "copied.py"):
        assert steps_live[method][-1] == ends[method]
    assert steps_live["halved.py"] == []
    # Before their first snapshot these have the live weights to show, and no others.
    assert 0.7 < steps_live["swa"][-1] / ends["swa"] < 0.9
    assert len(steps_live["lawa"]) < 3


def test_a_deleted_run_is_said_with_its_remedy_and_holds_up_no_other(
    home: Path, sent: list
) -> None:
    client = client_of(home)
    lost = runs_of(client)["swa, seed 0"].info.run_id
    client.delete_run(lost)
    done = publish(home)
    assert done.returncode == 1
    refused = r"^error: 1 refusal\(s\) by MLflow, of which the first is: the run 'swa, seed 0'"
    assert re.search(refused, done.stderr)
    assert f"python -m mlflow runs restore --run-id {lost}" in done.stderr
    assert len(runs_of(client)) == len(METHODS)
    client.restore_run(lost)
    assert publish(home).returncode == 0
    assert_all_is_there(client, home)


def test_a_folder_that_was_moved_records_where_it_is_now(home: Path, sent: list) -> None:
    moved = home.with_name("project2")
    home.rename(moved)
    try:
        done = command(moved, *FIRST)
        assert done.returncode == 0, done.stderr
        assert not home.exists()
        client = client_of(moved)
        runs, kept = runs_of(client), points_of(moved)
        assert len(runs) == len(METHODS) + 1
        assert all(history(client, runs[name]) == points for name, points in kept.items())
        (parent,) = runs.keys() - kept.keys()
        assert f"/runs/{runs[parent].info.run_id}/artifacts/" in done.stdout
        assert f"sqlite:///{moved}/mlflow.db" in done.stdout
        # MLflow's own paths do not move, and that is said.
        (line,) = (line for line in done.stdout.splitlines() if "refusal(s) by MLflow" in line)
        assert f"files of this experiment in {home}/mlruns, and there is no {home} here" in line
    finally:
        moved.rename(home)
    assert publish(home).returncode == 0
    assert_all_is_there(client_of(home), home)


def test_what_another_store_took_is_sent_to_this_one_too(
    home: Path, sent: list, tmp_path: Path
) -> None:
    shutil.copytree(
        home, tmp_path / "project", ignore=shutil.ignore_patterns("mlflow.db", "mlruns")
    )
    done = publish(tmp_path / "project")
    assert done.returncode == 0, done.stderr
    assert_all_is_there(client_of(tmp_path / "project"), tmp_path / "project")
