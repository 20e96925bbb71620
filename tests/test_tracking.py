"""What reaches MLflow of a comparison, whatever happens to it, to the server or to the disk."""

import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run as MlflowRun
from test_report import CURVES, comparison
from tracking_server import free_port, server, stop

from baselines.records import COMPARISON_TAG, RUN_TAG, Record, Records, Sent, count, read
from baselines.tracker import Tracker
from baselines.tracking import Sender, save_model
from baselines.training import Point


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, for making one takes MLflow seconds."""
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(home)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(previous)


def runs(uri: str, key: str) -> dict[str, MlflowRun]:
    """The runs of a comparison by their keys, no two alike."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("lawa-opt")
    if experiment is None:
        return {}
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`{COMPARISON_TAG}` = '{key}'", max_results=1000
    )
    by_key = {run.data.tags[RUN_TAG]: run for run in found}
    assert len(by_key) == len(found)
    return by_key


def history(uri: str, run: MlflowRun, metric: str = "validation/metric") -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    return [(metric.step, metric.value) for metric in found]


def point(step: int) -> Point:
    return Point(step, step / 10, 1 / step, 2 / step, 0.1)


POINTS = [point(step) for step in range(10, 60, 10)]
VALUES = [(p.step, p.value) for p in POINTS]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("disk full"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_closes_the_runs_that_are_open(store, error, status) -> None:
    made = comparison(CURVES)
    tracker = Tracker(made.plan, made.profile)

    def cut_off() -> None:
        with tracker:
            tracker.run_started("lawa", 0)
            tracker.point("lawa", 0, POINTS[0])
            raise error

    with pytest.raises(type(error)):
        cut_off()
    found = runs(store, tracker.key)
    assert {run.info.run_name for run in found.values()} == {"digits 4s x 3 seeds", "lawa, seed 0"}
    assert {run.info.status for run in found.values()} == {status}
    assert found["comparison"].info.run_id == tracker.run_id
    # What was measured until then is not lost, and what was sent does not stay behind.
    assert history(store, found["lawa/0/4s"]) == VALUES[:1]
    assert not tracker.folder.exists()


class Undecided(torch.nn.Module):
    """Cannot be exported: what it does depends on what it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_failed_run_says_why_and_its_tables_and_pictures_come_along(store) -> None:
    made = comparison(CURVES)
    with Tracker(made.plan, made.profile) as tracker:
        tracker.run_started("lawa", 0)
        tracker.log_model("lawa", 0, Undecided(), torch.ones(4, 3))
        tracker.run_failed("lawa", 0, "the loss is no number")
        tracker.finish(made)
    found = runs(store, tracker.key)
    failed = found["lawa/0/4s"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"] == "the loss is no number"
    assert "the loss is no number" in failed.data.tags["mlflow.note.content"]
    assert failed.data.tags["model"].startswith("not logged: ")
    client = mlflow.MlflowClient(store)
    names = {artifact.path for artifact in client.list_artifacts(tracker.run_id)}
    pictures = {"metric-over-rst", "final-metric", "time-to-target", "account"}
    assert names == {
        "reference-profile.json",
        "report.md",
        "results.json",
        *(f"{name}.png" for name in pictures),
    }
    note = found["comparison"].data.tags["mlflow.note.content"]
    assert "| LAWA of the constant rate | 1.6000" in note
    for name in pictures:
        assert f"![{name}](get-artifact?path={name}.png&run_uuid={tracker.run_id})" in note
    *_, address = tracker.how_to_review()
    key = address.rpartition("viewStateShareKey=")[2]
    experiment = client.get_experiment(tracker.experiment_id)
    assert json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["state"][:8] == "deflate;"


def records(folder: Path, key: str, points: list[Point], status: str = "FINISHED") -> None:
    """What a comparison with one run writes down."""
    with Records(folder) as made:
        made.add(Record(comparison=key, name="a comparison", parameters={"k": "5"}))
        made.add(Record(comparison=key, run="lawa/0", name="lawa, seed 0", status="RUNNING"))
        for p in points:
            metrics = {"validation/metric": p.value, "rst_seconds": p.rst_seconds}
            made.add(Record(comparison=key, run="lawa/0", step=p.step, metrics=metrics))
        made.add(Record(comparison=key, run="lawa/0", status=status))


def test_what_is_sent_twice_shows_once(store, tmp_path: Path) -> None:
    records(tmp_path, "twice", POINTS)
    assert Sender(tmp_path).send()
    (tmp_path / "sent.json").unlink()
    assert Sender(tmp_path).send()
    found = runs(store, "twice")
    assert set(found) == {"comparison", "lawa/0"}
    assert history(store, found["lawa/0"]) == VALUES


def test_a_resumed_run_goes_on_in_the_same_one(store, tmp_path: Path) -> None:
    records(tmp_path / "before", "resumed", POINTS[:3], status="KILLED")
    assert Sender(tmp_path / "before").send()
    killed = runs(store, "resumed")["lawa/0"]
    # It goes on elsewhere, later, and from a checkpoint that is older than its latest point.
    time.sleep(0.01)
    records(tmp_path / "after", "resumed", POINTS[1:])
    assert Sender(tmp_path / "after").send()
    found = runs(store, "resumed")
    assert set(found) == {"comparison", "lawa/0"}
    assert found["lawa/0"].info.run_id == killed.info.run_id
    assert (killed.info.status, found["lawa/0"].info.status) == ("KILLED", "FINISHED")
    assert history(store, found["lawa/0"]) == VALUES


def test_a_record_that_is_refused_does_not_hold_up_the_others(store, tmp_path: Path) -> None:
    with Records(tmp_path) as made:
        made.add(Record(comparison="refused", name="first"))
        made.add(Record(comparison="refused", run="lawa/0", tags={"x" * 300: "a long name"}))
    records(tmp_path, "refused", POINTS)
    assert Sender(tmp_path).send()
    assert history(store, runs(store, "refused")["lawa/0"]) == VALUES
    sent = Sent.read(tmp_path)
    assert sent.refused == 1
    assert "exceeds the maximum length of 250" in sent.failure


def test_no_number_is_recorded_as_such(store, tmp_path: Path) -> None:
    strange = [Point(1, 0.1, float("nan"), 1.0, 0.1), Point(2, 0.2, float("inf"), 1.0, 0.1)]
    records(tmp_path, "strange", strange)
    assert Sender(tmp_path).send()
    (_, first), (_, second) = history(store, runs(store, "strange")["lawa/0"])
    assert first != first
    assert second > 1e300


def test_a_record_keeps_the_time_at_which_it_was_added(tmp_path: Path) -> None:
    records(tmp_path, "time", POINTS)
    now = time.time() * 1000
    time.sleep(0.01)
    first, again = read(tmp_path, 0)[0], read(tmp_path, 0)[0]
    assert first == again
    assert all(now - 5000 < record.time_milliseconds <= now for record in first)


def test_a_line_cut_short_spoils_no_other(tmp_path: Path) -> None:
    records(tmp_path, "cut", POINTS[:1])
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    before, offset = read(tmp_path, 0)
    assert len(before) == whole.count(b"\n") - 1
    # A line that is still being written is not passed over for good.
    assert offset == whole[:-1].rfind(b"\n") + 1
    with Records(tmp_path) as more:
        more.add(Record(comparison="cut", run="lawa/1"))
    after, _ = read(tmp_path, offset)
    assert [record.run for record in after] == ["lawa/1"]


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    made = Records(tmp_path)
    made.add(Record(comparison="full"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (records_bytes(tmp_path) + 10, limits[1]))
    try:
        made.add(Record(comparison="full", run="lawa/0"))
        made.add_file(Record(comparison="full", run="lawa/1"), {"report.md": b"x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert made.failure is not None
    assert "File too large" in made.failure
    made.add(Record(comparison="full", run="lawa/2"))
    made.close()
    assert [r.run for r in read(tmp_path, 0)[0]] == ["comparison", "lawa/0", "lawa/1", "lawa/2"]


def test_the_logged_model_predicts_the_same(store, tmp_path: Path) -> None:
    workload = comparison(CURVES).plan.workload
    torch.manual_seed(0)
    model = workload.make_model().train()
    inputs = next(workload.batches(0))[0]
    with Records(tmp_path) as made:
        save_model(model, tmp_path / "models/averaged", inputs[:4])
        assert model.training
        made.add(Record(comparison="model", name="a comparison"))
        made.add(Record(comparison="model", run="lawa/0", model="models/averaged"))
    assert Sender(tmp_path).send()
    (tmp_path / "sent.json").unlink()
    assert Sender(tmp_path).send()
    run = runs(store, "model")["lawa/0"]
    client = mlflow.MlflowClient(store)
    (logged,) = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    loaded = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    model.eval()
    # Of another size of batch than the one it was exported with.
    torch.testing.assert_close(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_a_server_that_is_away_is_waited_for_and_then_said_to_be(
    home: Path, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    made = comparison(CURVES)
    with Tracker(made.plan, made.profile, folder=tmp_path, wait_seconds=0.1) as tracker:
        tracker.run_started("lawa", 0)
        for p in POINTS:
            tracker.point("lawa", 0, p)
        tracker.trajectory_ended(made.trajectories[0])
        tracker.finish(made)
    (line,) = tracker.how_to_review()
    assert f"{count(tmp_path, 0)} record(s) did not reach MLflow" in line
    assert f"lie in {tmp_path}" in line
    assert "\n" not in line
    assert "secret" not in line
    assert (tracker.run_id, tracker.experiment_id) == ("", "")
    _, _, command = line.partition("send them with ")
    with server(home, port):
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all is sent"
    assert history(store, runs(store, tracker.key)["lawa/0/4s"]) == VALUES


def wait_for(condition, told=lambda: "it did not happen", seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def test_a_server_killed_in_mid_run_gets_the_rest_when_it_is_back(
    home: Path, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    made = comparison(CURVES)
    tracker = Tracker(made.plan, made.profile, folder=tmp_path, wait_seconds=60)
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(server(home, port))
        with tracker:
            tracker.run_started("lawa", 0)
            tracker.point("lawa", 0, POINTS[0])
            wait_for(lambda: runs(store, tracker.key).get("lawa/0/4s"))
            stop(first)
            for p in POINTS[1:3]:
                tracker.point("lawa", 0, p)
            wait_for(lambda: Sent.read(tmp_path).failure)
            servers.enter_context(server(home, port))
            for p in POINTS[3:]:
                tracker.point("lawa", 0, p)
    found = runs(store, tracker.key)
    assert history(store, found["lawa/0/4s"]) == VALUES
    page, _, address = tracker.how_to_review()
    ui = f"http://127.0.0.1:{port}/#/experiments/{tracker.experiment_id}/runs"
    assert address.startswith(f"{ui}?")
    assert f"{ui}/{tracker.run_id}?" in page


def records_bytes(folder: Path) -> int:
    return (folder / "records.jsonl").stat().st_size


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_report import CURVES, comparison
from test_tracking import POINTS
from baselines.tracker import Tracker
made = comparison(CURVES)
tracker = Tracker(made.plan, made.profile, key="killed", folder=Path({folder!r}))
tracker.__enter__()
tracker.run_started("lawa", 0)
for p in POINTS:
    tracker.point("lawa", 0, p)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_training_wrote_down_is_sent(store: str, tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(
        lambda: Sent.read(tmp_path).offset_bytes == records_bytes(tmp_path),
        lambda: f"{Sent.read(tmp_path)} {(tmp_path / 'sending.log').read_text()}",
    )
    found = runs(store, "killed")
    assert history(store, found["lawa/0/4s"]) == VALUES
