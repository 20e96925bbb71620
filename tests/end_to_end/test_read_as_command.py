"""`compare --read`, run as a user runs it: processes, folder, report, MLflow, and refusals."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import command
from tests.support.golden_runs import PROFILE
from tests.support.in_mlflow import history, runs_of

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
mlflow = pytest.importorskip("mlflow")

pytestmark = pytest.mark.slow

COMPARE = (
    *("compare", "--workload", "digits", "--methods", "constant,decayed,lawa", "--budget", "0.3s"),
    *("--seeds", "2", "--reference", str(PROFILE)),
)
READ = (*COMPARE, "--read", "float,int4g32,int8", "--jobs", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read-as")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    done = command(folder, *READ)
    assert done.returncode == 0, done.stderr
    return done


def metrics_of(folder: Path) -> dict[str, dict[str, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {name: dict(run.data.metrics) for name, run in runs_of(client).items()}


def test_what_is_printed(first: subprocess.CompletedProcess[str]) -> None:
    out = first.stdout
    assert "Read as int8: int8: " not in out
    assert "\nRead as int8: " in out
    assert "\nRead as int4g32: " in out
    assert "read as int8" in out
    assert "charged to no run" in out
    assert " (int8 " in out


def test_mlflow_has_each_reading(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = runs_of(client)["lawa, seed 1"]
    float_, int8 = (
        history(client, run, name) for name in ("validation/metric", "read_as_int8/validation")
    )
    assert [step for step, _ in int8] == [step for step, _ in float_]
    assert run.data.metrics["read_as_int8/final"] == int8[-1][1]
    assert {"read_as_int8/test", "read_as_int4g32/relative_error"} <= run.data.metrics.keys()
    parent = runs_of(client)["digits 0.3s x 2 seeds"]
    assert parent.data.params["read"] == run.data.params["read"] == "float, int8, int4g32"


def test_the_same_command_trains_nothing_again(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    before = metrics_of(folder)
    # In another order it is the same comparison.
    again = command(folder, *COMPARE, "--read", "int8,int4g32", "--jobs", "2")
    assert again.returncode == 0, again.stderr
    assert len([*folder.glob("lawa-runs/*")]) == 1
    assert metrics_of(folder) == before


def test_float_is_what_it_is_without_readings(
    folder: Path, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    plain = command(tmp_path, *COMPARE, "--jobs", "2", "--no-publish")
    assert plain.returncode == 0, plain.stderr
    one, other = (sorted(at.glob("lawa-runs/*/*/*/events.jsonl")) for at in (folder, tmp_path))
    for with_, without in zip(one, other, strict=True):
        read, alone = (
            [
                event["point"] | {"read": {}}
                for event in map(json.loads, path.read_text().splitlines())
                if event["event"] == "evaluated"
            ]
            for path in (with_, without)
        )
        assert read == alone


def test_a_report_of_the_folder_has_them(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    (root,) = folder.glob("lawa-runs/*")
    done = command(folder, "report", str(root))
    assert done.returncode == 0, done.stderr
    page = (folder / "lawa-report.html").read_text()
    assert "read as int4g32" in page
    assert "metric-over-bits" in page


def test_a_dry_run_names_them_and_trains_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, *READ, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Read as int4g32: " in done.stdout
    assert "and read as int8, int4g32" in done.stdout
    assert "a rounded copy, while read" in done.stdout
    assert not (tmp_path / "lawa-runs").exists()


@pytest.mark.parametrize("kind", [("compare",), ("ablate",)])
@pytest.mark.parametrize("read", ["int1", "half", "int4,int4"])
def test_a_wrong_one_is_refused_in_a_line(kind: tuple[str], read: str, tmp_path: Path) -> None:
    done = command(tmp_path, *kind, "--workload", "digits", "--read", read)
    assert done.returncode == 2
    assert "--read: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "lawa-runs").exists()


def test_an_ablation_is_read_rounded_too(tmp_path: Path) -> None:
    done = command(
        tmp_path,
        *("ablate", "--workload", "digits", "--budget", "0.3s", "--seeds", "2", "--k", "2,5"),
        *("--every", "5", "--reference", str(PROFILE), "--read", "int3", "--no-publish"),
    )
    assert done.returncode == 0, done.stderr
    assert "Read as int3: Best at the end: k=" in done.stdout
    # A title is broken where its table is narrow.
    assert "after 0.3 s of RST, read as int3" in " ".join(done.stdout.split())
