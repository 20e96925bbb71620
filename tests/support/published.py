"""Comparisons to be published, and whether all of them is in MLflow."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow

from baselines.training.events import Evaluated, read_events
from tests.support.commands import Command
from tests.support.in_mlflow import history, runs_of
from tests.support.kept_comparison import plan_of
from tests.support.once import once
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from tests.support.user_files import averager

# Of a user's own: one that averages nothing, one that reads a copy of the live weights, and one
# that puts other weights in place behind torch's back.
FILES = {
    "live.py": "",
    "copied.py": """
    def evaluation_model(self):
        return nullcontext(copy.deepcopy(self.model)), {}
""",
    "halved.py": """
    @contextmanager
    def reading_halved(self):
        for parameter in self.model.parameters():
            parameter.data.mul_(0.5)
        yield self.model
        for parameter in self.model.parameters():
            parameter.data.mul_(2)

    def evaluation_model(self):
        return self.reading_halved(), {}
""",
}
METHODS = ("constant", "lawa", "swa", *FILES)
COMPARE = (
    *("compare", "--workload", "digits", "--seeds", "1", "--budget", "0.6s", "--lr", "0.05"),
    *("--reference", "reference.json"),
)
FIRST = (*COMPARE, "--methods", ",".join(METHODS))


def prepare(folder: Path) -> Path:
    """The folder with all that the command reads."""
    folder.mkdir(parents=True, exist_ok=True)
    profile_of([COSTS], {**plan_of().signature, "k": 5}).write(folder / "reference.json")
    for name, body in FILES.items():
        (folder / name).write_text(averager(body))
    return folder


def _train(folder: Path) -> None:
    prepare(folder)
    with tempfile.TemporaryDirectory() as away:
        Path(away, "mlflow.py").write_text("raise ImportError('there is no MLflow here')")
        done = subprocess.run(
            [sys.executable, "-m", "baselines", *FIRST],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": away},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = "Not all is in MLflow (MLflow cannot be imported (there is no MLflow here)"
    assert said in done.stdout
    assert not (folder / "mlflow.db").exists()


def trained_without_mlflow() -> Path:
    """A comparison of FIRST, trained where there is no MLflow, to be copied."""
    return once("trained-without-mlflow", _train)


def root_of(folder: Path) -> Path:
    (found,) = folder.glob("lawa-runs/*")
    return found


def publish(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m baselines publish` on the one comparison of a folder, run in it."""
    root, every = root_of(folder), {**os.environ, **environment}
    words = ("publish", *options, str(root.relative_to(folder)))
    return Command(folder, "baselines", *words, environment=every).end()


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def points_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and metric of all evaluations, by the run's name, as the comparison keeps them."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("lawa-runs/*/*/*-seed-*"):
        for event in read_events(path):
            if isinstance(event, Evaluated):
                run = found.setdefault(f"{event.method}, seed {event.seed}", {})
                run.setdefault(event.point.step, event.point.value)
    return {name: list(points.items()) for name, points in found.items()}


def assert_all_is_there(
    client: mlflow.MlflowClient, folder: Path, count: int = len(METHODS)
) -> None:
    """Every run of a comparison that ended well, whole, and nothing twice."""
    runs, kept = runs_of(client), points_of(folder)
    (parent,) = runs.keys() - kept.keys()
    assert len(kept) == count
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name, points in kept.items():
        assert history(client, runs[name]) == points
        # Of the first seed alone.
        models = client.search_logged_models(
            [runs[name].info.experiment_id], f"source_run_id = '{runs[name].info.run_id}'"
        )
        assert [model.status for model in models] == ["READY"] * name.endswith("seed 0")
    files = {artifact.path for artifact in client.list_artifacts(runs[parent].info.run_id)}
    assert {"report.md", "results.json", "account.png", "reference-profile.json"} <= files
