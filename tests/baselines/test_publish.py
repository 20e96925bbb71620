"""MLflow says what a folder says, however often it is published, and whatever it is."""

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from baselines.analysis import report
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept
from baselines.experiment.manifest import FolderError, Manifest
from baselines.experiment.plan import Trial, tasks
from baselines.experiment.store import budget_folder, task_folder
from baselines.tracking import said, saved_view
from baselines.tracking.mlflow_run import Sent
from baselines.tracking.publish import Published, Publisher
from baselines.tracking.review import review_instructions
from baselines.training.events import (
    Evaluated,
    EventLog,
    Failed,
    ModelExported,
    Started,
    ending_of,
    read_events,
)
from baselines.training.exported_model import export_model
from baselines.training.results import Point, TrainingResult
from lawa_opt import LAWA
from tests.support.comparisons import CURVES, comparison, kept
from tests.support.in_mlflow import everything, history, runs_of
from tests.support.stores import empty_store
from tests.support.user_files import averager

# Whatever is asked of MLflow takes it seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, for making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("tracking")
    empty_store(folder)
    return folder


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(home)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(previous)


SMALL = {name: by_seed[:2] for name, by_seed in CURVES.items() if name != "decayed"}


def publish(folder: Path, *, is_running: bool = False) -> Published:
    return Publisher(folder, Sent()).publish(is_running=is_running)


def key_of(root: Path) -> str:
    return Manifest.read(root / "4s").id


def values(made: Comparison, method: str, seed: int) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in made.of(method)[seed].points]


def test_a_comparison_that_is_over_has_its_report_and_publishing_it_again_changes_nothing(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    made = comparison(CURVES)
    root = kept(made, tmp_path / "root")
    done = publish(root)
    assert (done.runs, done.points, done.is_new, done.refusals) == (9, 36, True, [])
    found = runs_of(client, key=key_of(root))
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert len(found) == 10
    for run in made.runs:
        there = found[f"{run.method}/{run.seed}/4s"]
        assert history(client, there) == values(made, run.method, run.seed)
        assert there.data.metrics["final/metric"] == run.final
        assert there.data.metrics["work/steps"] == run.steps
        assert there.data.tags["mlflow.parentRunId"] == found["comparison"].info.run_id
    parent = found["comparison"].info.run_id
    pictures = {"metric-over-rst", "final-metric", "time-to-target", "account"}
    assert {artifact.path for artifact in client.list_artifacts(parent)} == {
        "reference-profile.json",
        "report.html",
        "report.md",
        "results.json",
        *(f"{name}.png" for name in pictures),
    }
    note = found["comparison"].data.tags["mlflow.note.content"]
    assert report.markdown(made) in note
    for name in pictures:
        assert f"![{name}](get-artifact?path={name}.png&run_uuid={parent})" in note
    lines = review_instructions(done.store, done.experiment_id, done.comparisons)
    shared = f"mlflow.sharedViewState.{lines[-1].rpartition('viewStateShareKey=')[2]}"
    experiment = client.get_experiment(done.experiment_id)
    assert json.loads(experiment.tags[shared])["state"][:8] == "deflate;"
    before = everything(client, key_of(root))
    # From here, and as from another machine.
    for folder in (root, root / "4s", Path(shutil.copytree(root, tmp_path / "brought"))):
        time.sleep(0.01)
        assert publish(folder) == dataclasses.replace(done, is_new=False)
        assert everything(client, key_of(root)) == before
    assert client.get_experiment(done.experiment_id).tags == experiment.tags


def a_log(root: Path, seed: int = 0) -> Path:
    """The only method's folder for this seed, empty."""
    (folder,) = (root / "4s").glob(f"*-seed-{seed}")
    shutil.rmtree(folder)
    return folder


def one_method() -> Comparison:
    return comparison({"lawa": CURVES["lawa"][:1]})


def test_a_file_with_a_quote_in_its_name_is_found_again_and_with_two_kinds_refused(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    """MLflow's filters have no way to escape them."""
    for name, refused in (("it's.py", False), ('6"_long.py', False), ("it's_6\".py", True)):
        file = tmp_path / name
        file.write_text(averager(""))
        made = comparison({str(file): CURVES["lawa"][:1]})
        root = kept(made, tmp_path / f"root of {name}")
        first, again = publish(root), publish(root)
        found = runs_of(client, key=key_of(root))
        assert found.keys() == {"comparison", *(() if refused else (f"{file}/0/4s",))}
        assert dataclasses.replace(first, is_new=False) == again
        assert [": give the file a name without" in each for each in first.refusals] == [
            True for _ in range(refused)
        ]


def test_a_training_that_goes_on_does_so_in_the_same_run(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    made = one_method()
    root = kept(made, tmp_path)
    folder = a_log(root)
    (run,) = made.runs
    started = Started(seed=0, shares={"lawa": 1.0})
    points = [Evaluated(seed=0, method="lawa", point=point) for point in run.points]
    with EventLog(folder) as log:
        for event in (started, *points[:3]):
            log.append(event)

    def there() -> mlflow.entities.Run:
        return runs_of(client, key=key_of(root))["lawa/0/4s"]

    publish(root, is_running=True)
    first = there()
    assert first.info.status == "RUNNING"
    assert history(client, first) == values(made, "lawa", 0)[:3]
    publish(root)
    assert there().info.status == "KILLED"
    publish(root, is_running=True)
    assert there().info.status == "RUNNING"
    with EventLog(folder) as log:
        log.append(Failed(seed=0, methods=("lawa",), reason="the disk is away"))
    publish(root)
    assert there().info.status == "FAILED"
    assert there().data.tags["failure"] == "the disk is away"
    assert "the disk is away" in there().data.tags["mlflow.note.content"]
    assert runs_of(client, key=key_of(root))["comparison"].info.status == "FAILED"
    # It goes on from a checkpoint that is older than its latest point, which it tells again.
    time.sleep(0.01)
    with EventLog(folder) as log:
        again = [event.model_copy(update={"time_milliseconds": 1}) for event in points[1:3]]
        for event in (started, points[0], *again, points[3], ending_of(made.trainings[0], 0)):
            log.append(event)
    publish(root)
    ended = there()
    assert ended.info.run_id == first.info.run_id
    assert ended.info.status == "FINISHED"
    assert history(client, ended) == values(made, "lawa", 0)
    assert not {"failure", "mlflow.note.content"} & set(ended.data.tags)
    times = [m.timestamp for m in client.get_metric_history(ended.info.run_id, "train/loss")]
    assert times == [point.time_milliseconds for point in points]
    assert runs_of(client, key=key_of(root))["comparison"].info.status == "FINISHED"
    # A copy from before, or an interrupt later, does not undo it.
    (folder / "events.jsonl").write_text(
        "".join((folder / "events.jsonl").read_text().splitlines(keepends=True)[:3])
    )
    publish(root)
    assert there().info.status == "FINISHED"


def test_a_run_that_diverged_has_failed_with_its_account(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    made = comparison(SMALL)
    bad = [
        dataclasses.replace(run, failure="the loss is no number", test=float("inf"))
        if (run.method, run.seed) == ("lawa", 1)
        else run
        for run in made.runs
    ]
    root = kept(
        dataclasses.replace(made, trainings=(TrainingResult(tuple(bad), 4, 4, 0),)), tmp_path
    )
    publish(root)
    found = runs_of(client, key=key_of(root))
    failed = found.pop("lawa/1/4s")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"] == "the loss is no number"
    assert "the loss is no number" in failed.data.tags["mlflow.note.content"]
    assert failed.data.metrics["work/steps"] == 40
    assert not {"final/metric", "final/test"} & set(failed.data.metrics)
    assert [a.path for a in client.list_artifacts(failed.info.run_id)] == ["account.json"]


def test_what_is_refused_of_a_run_holds_up_no_other(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    made = one_method()
    data = {**made.plan.workload.data, "x" * 300: "a long name"}
    workload = dataclasses.replace(made.plan.workload, data=data)
    made = dataclasses.replace(made, plan=dataclasses.replace(made.plan, workload=workload))
    root = kept(made, tmp_path)
    done = publish(root)
    assert len(done.refusals) == 1
    assert "exceeds the maximum length of 250" in done.refusals[0]
    there = runs_of(client, key=key_of(root))["lawa/0/4s"]
    assert history(client, there) == values(made, "lawa", 0)
    assert there.info.status == "FINISHED"


def test_no_number_is_recorded_as_such(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    root = kept(one_method(), tmp_path)
    with EventLog(a_log(root)) as log:
        log.append(Started(seed=0, shares={"lawa": 1.0}))
        for step, value in ((1, float("nan")), (2, float("inf"))):
            log.append(Evaluated(seed=0, method="lawa", point=Point(step, 0.1, value, 1.0, 0.1)))
    publish(root)
    (_, first), (_, second) = history(client, runs_of(client, key=key_of(root))["lawa/0/4s"])
    assert first != first
    assert second > 1e300


def averaged_model() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A trained model under its average, inputs of it, and what the live weights make of them."""
    workload = comparison(CURVES).plan.workload
    torch.manual_seed(0)
    model = workload.make_model()
    optimizer = LAWA(workload.make_optimizer(model, 0.05), k=3, every=2)
    batches = workload.batches(0)
    for _ in range(8):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    inputs = next(batches)[0]
    model.eval()
    with torch.no_grad():
        live = model(inputs)
    optimizer.eval()
    return model.train(), inputs, live


class Undecided(torch.nn.Module):
    """Cannot be exported: what it does depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if x.sum() > 0 else -x


def with_models(tmp_path: Path) -> tuple[Path, torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A comparison that has a model of one method, and cannot have that of another."""
    made = comparison({name: curves[:1] for name, curves in SMALL.items()})
    root = kept(made, tmp_path / "root")
    model, inputs, live = averaged_model()
    (task,) = tasks(made.plan)
    folder = task_folder(budget_folder(root, made.plan), task)
    events = read_events(folder)
    assert export_model(model, folder / "model-lawa", inputs) is None
    reason = export_model(Undecided(), folder / "model-constant", torch.ones(4, 3))
    assert not (folder / "model-constant").exists()
    (folder / "events.jsonl").unlink()
    averaged = [
        event.model_copy(update={"point": dataclasses.replace(event.point, weights="averaged")})
        if isinstance(event, Evaluated)
        else event
        for event in events
    ]
    with EventLog(folder) as log:
        for event in (
            *averaged[:-1],
            ModelExported(seed=0, method="lawa", folder="model-lawa"),
            ModelExported(seed=0, method="constant", reason=reason),
            averaged[-1],
        ):
            log.append(event)
    return root, model, inputs, live


# MLflow warns of type hints in its own code.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
def test_a_model_in_its_average_is_logged_and_one_that_cannot_be_says_why(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    root, model, inputs, live = with_models(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not publish(root).refusals
    assert not publish(root).refusals
    # It stays, for another store.
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == files
    found = runs_of(client, key=key_of(root))
    run, other = found["lawa/0/4s"], found["constant/0/4s"]
    assert other.outputs.model_outputs == []
    assert other.data.tags["model"].startswith("not logged: ")
    (logged,) = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert logged.name == "averaged lawa 0"
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    loaded = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    assert model.training
    model.eval()
    # Of another size of batch than a single one, and not what the live weights say.
    for some in (inputs, inputs[:3]):
        torch.testing.assert_close(loaded(some), model(some), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(loaded(inputs), live, rtol=1e-3, atol=1e-3)
    # As a server of models would load it, too.
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    example = served.metadata.load_input_example(f"models:/{logged.model_id}")
    np.testing.assert_array_equal(example, inputs[:2].numpy())
    np.testing.assert_allclose(served.predict(example), model(inputs[:2]).detach(), rtol=1e-5)


def test_no_file_from_elsewhere_is_sent_as_a_model(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    root, *_ = with_models(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (example,) = root.rglob("input_example.json")
    example.unlink()
    example.symlink_to(secret)
    done = publish(root)
    assert len(done.refusals) == 1
    assert "is not whole: there is no file input_example.json" in done.refusals[0]
    assert not [p for p in Path.cwd().rglob("input_example.json") if p.read_text() == "{}"]


def test_what_the_folder_says_wrongly_is_told(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    root = kept(one_method(), tmp_path / "root")
    (log,) = root.rglob("events.jsonl")
    log.write_text(log.read_text().replace('"value"', '"worth"', 1))
    with pytest.raises(FolderError, match=r"events.jsonl is damaged \(a line is no event"):
        publish(root)
    with pytest.raises(FolderError, match="holds no comparison"):
        publish(tmp_path)


def test_a_run_s_parameters_begin_with_what_matters_and_are_its_own() -> None:
    plan = comparison(CURVES).plan
    lawa = plan.method("lawa")
    own = dataclasses.replace(lawa.with_settings({"lawa.k": 7}), learning_rate=0.2)
    methods = tuple(own if method == lawa else method for method in plan.methods)
    plan = dataclasses.replace(plan, methods=methods)
    parent, of_lawa, constant = (
        list(parameters.items())
        for parameters in (
            said.parameters_of(plan),
            said.parameters_of_run(plan, "lawa", 0),
            said.parameters_of_run(plan, "constant", 0),
        )
    )
    head = [("method", "lawa"), ("seed", "0"), ("budget_seconds", "4.0"), ("learning_rate", "0.2")]
    assert of_lawa[:6] == [*head, ("lawa.k", "7"), ("lawa.every", "auto")]
    assert dict(constant)["learning_rate"] == "0.1"
    assert [name for name, _ in parent][:4] == [
        "methods",
        "seeds",
        "budget_seconds",
        "learning_rate",
    ]


def test_a_tuned_comparison_says_what_was_tried_and_what_was_best(tmp_path: Path) -> None:
    made = comparison(CURVES)
    methods = tuple(dataclasses.replace(m, learning_rate=0.2) for m in made.plan.methods)
    trials = tuple(
        Trial(
            *(method.name, number, rate),
            {**method.settings, **({"lawa.k": k} if method.name == "lawa" else {})},
            *(1.0 + number, 4.0, 1.5),
        )
        for number, (rate, k) in enumerate([(0.2, 5), (0.05, 8)])
        for method in methods
    )
    plan = dataclasses.replace(made.plan, methods=methods, trials=2, tried=trials)
    parameters = said.parameters_of(plan)
    assert parameters["tuning/trials"] == "2"
    assert parameters["tuning/constant/rst_seconds"] == "8.0"
    assert parameters["tuning/constant/tried"] == "learning_rate 0.05 to 0.2"
    assert parameters["tuning/lawa/tried"] == "learning_rate 0.05 to 0.2, lawa.k 5 to 8"
    assert parameters["tuning/lawa/best"] == "learning_rate 0.2, lawa.k 5"
    files = said.Report.of(*as_kept(dataclasses.replace(made, plan=plan), tmp_path)).files()
    assert b"2 trials a method" in files[said.REPORT]
    table = json.loads(files["tuning.json"])
    assert len(table["data"]) == len(trials)
    assert "chosen" in table["columns"]


def as_kept(made: Comparison, folder: Path) -> tuple[Kept, Comparison]:
    return Kept.read(kept(made, folder / "kept") / "4s"), made


def test_the_parent_has_what_a_comparison_has_come_to() -> None:
    found = said.comparison_metrics(comparison(CURVES))
    assert found["end/lawa"] == pytest.approx(1.85)
    assert found["saved_vs_constant_percent/lawa"] == pytest.approx(50)
    assert "saved_vs_constant_percent/constant" not in found
    assert found["measured/training_seconds"] == pytest.approx(4.1)


def test_the_saved_view_is_one_wide_chart_of_where_methods_are_told_apart() -> None:
    made = comparison(CURVES)
    low, high = said.range_of(made)
    # From 1 s on, of the means; and a twentieth beside.
    assert (low, high) == pytest.approx((1.0833 - 0.1475, 4.0333 + 0.1475), abs=1e-3)
    _, value = saved_view.experiment_tag(made.plan, "a key", "a name", 7, (low, high))
    state = json.loads(zlib.decompress(base64.b64decode(json.loads(value)["state"][8:])))
    (chart,) = state["compareRunCharts"]
    assert chart["range"] == {"xMin": 0.8, "xMax": 4.0, "yMin": low, "yMax": high}
    assert chart["metricKey"] == "validation/metric"
    first, *others = state["compareRunSections"]
    assert chart["metricSectionId"] == first["uuid"]
    assert (first["columns"], first["display"]) == (1, True)
    assert first["name"] == f"validation {made.plan.workload.metric} over RST"
    assert not any(section["display"] for section in others)
    assert state["groupsExpanded"] == {f"param.method.{name}": False for name in CURVES}
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`final/test`", True)
    assert "metrics.`final/test`" in state["selectedColumns"]


def test_a_long_report_is_cut_between_two_lines_within_the_limit_of_a_tag(tmp_path: Path) -> None:
    whole = said.Report.of(*as_kept(comparison(CURVES), tmp_path))
    long = dataclasses.replace(whole, text="\n".join(f"line {number}" for number in range(2000)))
    note = long.note(["account.png"])
    assert 6900 < len(note) <= said.NOTE_CHARACTERS
    assert note.endswith("![account](account.png)")
    before, _, _ = note.partition("\n\n_The rest is in the artifact report.md._")
    assert long.text.startswith(f"{before}\n")
    assert whole.note([]).strip() == whole.text.strip()


def test_the_line_that_starts_the_ui_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@127.0.0.1:1/db")
    lines = review_instructions("postgresql://127.0.0.1:1/db", "1", {"key": "a1"})
    (line,) = (line for line in lines if "mlflow ui" in line)
    assert 'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI" ' in line
    assert not any("secret" in line for line in lines)


def test_where_mlflow_is_not_installed_publishing_says_what_to_do(tmp_path: Path) -> None:
    root = kept(one_method(), tmp_path / "root")
    (tmp_path / "mlflow.py").write_text("raise ImportError('there is no MLflow here')")
    done = subprocess.run(
        [sys.executable, "-m", "baselines", "publish", str(root)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: MLflow cannot be imported (there is no MLflow here): "
        "pip install 'lawa-opt[baselines]'\n"
    )
