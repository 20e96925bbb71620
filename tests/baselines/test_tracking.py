"""What reaches MLflow of a comparison, whatever happens to it, to the server or to the disk."""

import contextlib
import dataclasses
import json
import os
import resource
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
from mlflow.entities import Run as MlflowRun

from baselines.analysis import report, tables
from baselines.experiment.comparison import Comparison, Trial
from baselines.tracking import sender
from baselines.tracking.records import (
    COMPARISON_TAG,
    FILE,
    RUN_TAG,
    Record,
    Records,
    Sent,
    count,
    read,
)
from baselines.tracking.sender import Sender
from baselines.tracking.tracker import Tracker
from baselines.training.results import Point
from lawa_opt import LAWA
from tests.support.comparisons import CURVES, POINTS, comparison
from tests.support.tracking_server import free_port, server, stop
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, for making one takes MLflow seconds."""
    return tmp_path_factory.mktemp("tracking")


class Server:
    """One for all that need one, since starting it takes MLflow many seconds."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._servers = contextlib.ExitStack()
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._running is None:
            self._running = self._servers.enter_context(server(self._folder, self.port))

    def kill(self) -> None:
        if self._running is not None:
            stop(self._running)
            self._running = None


@pytest.fixture(scope="module")
def one_server(home: Path) -> Iterator[Server]:
    made = Server(home)
    yield made
    made.kill()


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(home)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(previous)


def sending() -> psutil.Process:
    """The process that sends for this one."""
    (found,) = (
        child for child in psutil.Process().children() if "baselines.tracking" in child.cmdline()
    )
    return found


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


VALUES = [(p.step, p.value) for p in POINTS]


@pytest.mark.slow
def test_an_exception_closes_the_runs_that_are_open(store) -> None:
    made = comparison(CURVES)
    # One in the other, for each takes seconds to end.
    failed, killed = (Tracker(made.plan, made.profile) for _ in range(2))

    def interrupt() -> None:
        with killed:
            killed.run_started("lawa", 0)
            killed.point("lawa", 0, POINTS[0])
            raise KeyboardInterrupt

    def cut_off() -> None:
        with failed:
            failed.run_started("lawa", 0)
            failed.point("lawa", 0, POINTS[0])
            with pytest.raises(KeyboardInterrupt):
                interrupt()
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        cut_off()
    for tracker, status in ((failed, "FAILED"), (killed, "KILLED")):
        found = runs(store, tracker.key)
        names = {run.info.run_name for run in found.values()}
        assert names == {"digits 4s x 3 seeds", "lawa, seed 0"}
        assert {run.info.status for run in found.values()} == {status}
        assert found["comparison"].info.run_id == tracker.run_id
        # What was measured until then is not lost, and what was sent does not stay behind.
        assert history(store, found["lawa/0/4s"]) == VALUES[:1]
        assert not tracker.folder.exists()


class Undecided(torch.nn.Module):
    """Cannot be exported: what it does depends on what it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.slow
def test_a_failed_run_says_why_and_its_tables_and_pictures_come_along(store) -> None:
    made = comparison(CURVES)
    with Tracker(made.plan, made.profile) as tracker:
        tracker.run_started("lawa", 0)
        tracker.ended("lawa", 0, Undecided(), torch.ones(4, 3))
        tracker.run_failed("lawa", 0, "the loss is no number")
        tracker.log_report(made)
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
    assert report.markdown(made) in note
    for name in pictures:
        assert f"![{name}](get-artifact?path={name}.png&run_uuid={tracker.run_id})" in note
    *_, address = tracker.review_instructions()
    key = address.rpartition("viewStateShareKey=")[2]
    experiment = client.get_experiment(tracker.experiment_id)
    assert json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["state"][:8] == "deflate;"


@pytest.mark.slow
def test_without_mlflow_all_is_written_down_and_sent_from_elsewhere(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, linear = comparison(CURVES), torch.nn.Linear(3, 2)
    (tmp_path / "mlflow.py").write_text("raise ImportError('there is no MLflow here')")
    with monkeypatch.context() as without:
        # In the process that would send, and in this one.
        without.setenv("PYTHONPATH", str(tmp_path))
        without.setitem(sys.modules, "baselines.tracking.sender", None)
        with Tracker(made.plan, made.profile, folder=tmp_path / "records") as tracker:
            tracker.run_started("lawa", 0)
            tracker.point("lawa", 0, POINTS[0])
            tracker.ended("lawa", 0, linear, torch.ones(4, 3))
            tracker.training_ended(made.trainings[0])
            tracker.log_report(made)
    [unsent] = tracker.review_instructions()
    assert "did not reach MLflow" in unsent
    brought = tmp_path / "brought"
    shutil.copytree(tmp_path / "records", brought)
    assert Sender(brought).send()
    found = runs(store, tracker.key)
    assert history(store, found["lawa/0/4s"])[0] == VALUES[0]
    assert found["lawa/0/4s"].info.status == "FINISHED"
    (output,) = found["lawa/0/4s"].outputs.model_outputs
    loaded = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    torch.testing.assert_close(loaded(torch.ones(2, 3)), linear(torch.ones(2, 3)))
    assert report.markdown(made) in found["comparison"].data.tags["mlflow.note.content"]


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


def told(made: Comparison, key: str, folder: Path, *, again: bool = False) -> None:
    """What a comparison tells of two of its runs, to a sender that is killed at once.

    Told again, it is as by a command that goes on: without the models.
    """
    with Tracker(made.plan, made.profile, key=key, folder=folder) as tracker:
        sender = sending()
        sender.kill()
        for run in (made.of("lawa")[0], made.of("lawa")[1]):
            tracker.run_started(run.method, run.seed)
            for p in run.points:
                tracker.point(run.method, run.seed, dataclasses.replace(p, weights="averaged"))
            if not again:
                tracker.ended(run.method, run.seed, *averaged_model(run.seed)[:2])
        tracker.training_ended(
            dataclasses.replace(made.trainings[0], runs=(made.of("lawa")[0], made.of("lawa")[1]))
        )
        # As `finish` does, without the pictures, which take seconds to draw.
        tracker.log_note(report.markdown(made), {}, {"results": tables.columns(made)})
    assert count(folder, Sent.read(folder).offset_bytes) > 0


def averaged_model(seed: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A trained model under its average, inputs of it, and what the live weights make of them."""
    workload = comparison(CURVES).plan.workload
    torch.manual_seed(seed)
    model = workload.make_model()
    optimizer = LAWA(workload.make_optimizer(model, 0.05), k=3, every=2)
    batches = workload.batches(seed)
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


@pytest.fixture(scope="module")
def failing_then_ending() -> Comparison:
    curves = comparison(CURVES)
    (result,) = curves.trainings
    bad = tuple(
        dataclasses.replace(run, failure="the loss is no number") if run.seed == 1 else run
        for run in result.runs
    )
    return dataclasses.replace(curves, trainings=(dataclasses.replace(result, runs=bad),))


def everything(uri: str, key: str) -> dict[str, object]:
    """All that MLflow has of a comparison."""
    client = mlflow.MlflowClient(uri)
    return {
        name: (
            run.info.to_proto().SerializeToString(),
            run.data.params,
            {**run.data.tags},
            {
                metric: [(m.step, m.value, m.timestamp) for m in found]
                for metric in run.data.metrics
                if (found := client.get_metric_history(run.info.run_id, metric))
            },
            sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
            [output.model_id for output in run.outputs.model_outputs],
        )
        for name, run in runs(uri, key).items()
    }


@pytest.mark.slow
def test_all_told_again_changes_nothing(store, tmp_path: Path, failing_then_ending) -> None:
    made = failing_then_ending
    told(made, "again", tmp_path / "kept")
    assert Sender(tmp_path / "kept").send()
    before = everything(store, "again")
    assert set(before) == {"comparison", "lawa/0/4s", "lawa/1/4s"}
    found = runs(store, "again")
    assert [run.info.status for _, run in sorted(found.items())] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
    ]
    # Behind what is sent already, and as from another machine that has the same key alone.
    for folder in ("kept", "elsewhere"):
        time.sleep(0.01)
        told(made, "again", tmp_path / folder, again=True)
        assert Sender(tmp_path / folder).send()
        assert everything(store, "again") == before
    # All of it, from the very beginning.
    (tmp_path / "kept" / "sent.json").unlink()
    assert Sender(tmp_path / "kept").send()
    assert everything(store, "again") == before
    # A run that failed and was then tried again with success is no failure any more.
    told(comparison(CURVES), "again", tmp_path / "kept", again=True)
    assert Sender(tmp_path / "kept").send()
    better = runs(store, "again")["lawa/1/4s"]
    assert better.info.status == "FINISHED"
    assert not {"failure", "mlflow.note.content"} & set(better.data.tags)


# MLflow warns of type hints in its own code.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
def test_the_model_in_its_average_is_logged_for_the_first_seed(store, tmp_path: Path) -> None:
    told(comparison(CURVES), "model", tmp_path)
    assert Sender(tmp_path).send()
    run, other = (runs(store, "model")[f"lawa/{seed}/4s"] for seed in (0, 1))
    assert other.outputs.model_outputs == []
    client = mlflow.MlflowClient(store)
    (logged,) = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert logged.name == "averaged lawa 0"
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    loaded = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    model, inputs, live = averaged_model(0)
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
    # What has arrived takes no room twice.
    assert list((tmp_path / "models").iterdir()) == []


def test_a_run_s_parameters_begin_with_what_matters_and_are_its_own(store, tmp_path: Path) -> None:
    made = comparison(CURVES)
    lawa = made.plan.method("lawa")
    own = dataclasses.replace(lawa.with_settings({"lawa.k": 7}), learning_rate=0.2)
    methods = tuple(own if method == lawa else method for method in made.plan.methods)
    tuned = dataclasses.replace(made.plan, methods=methods)
    with Tracker(tuned, made.profile, folder=tmp_path) as tracker:
        sending().kill()
        for method in ("lawa", "constant"):
            tracker.run_started(method, 0)
    parent, lawa, constant, *_ = (
        list(record.parameters.items()) for record in read(tmp_path, 0)[0]
    )
    head = [("method", "lawa"), ("seed", "0"), ("budget_seconds", "4.0"), ("learning_rate", "0.2")]
    assert lawa[:6] == [*head, ("lawa.k", "7"), ("lawa.every", "auto")]
    assert dict(constant)["learning_rate"] == "0.1"
    assert [name for name, _ in parent][:4] == [
        "methods",
        "seeds",
        "budget_seconds",
        "learning_rate",
    ]


def test_a_tuned_comparison_says_what_was_tried_and_what_was_best(store, tmp_path: Path) -> None:
    made = comparison(CURVES)
    methods = tuple(dataclasses.replace(m, learning_rate=0.2) for m in made.plan.methods)
    trials = tuple(Trial(m.name, 0, 0.2, m.settings, 1.0, 4.0, 1.5) for m in methods)
    tuned = dataclasses.replace(made.plan, methods=methods, trials=1, tried=trials)
    with Tracker(tuned, made.profile, folder=tmp_path) as tracker:
        sending().kill()
        tracker.log_report(dataclasses.replace(made, plan=tuned))
    begun, ended, *_ = read(tmp_path, 0)[0]
    assert begun.parameters["tuning/trials"] == "1"
    assert begun.parameters["tuning/constant/rst_seconds"] == "4.0"
    assert begun.parameters["tuning/constant/tried"] == "learning_rate 0.01 to 1"
    assert begun.parameters["tuning/constant/best"] == "learning_rate 0.2"
    assert begun.parameters["tuning/lawa/best"].startswith("learning_rate 0.2, ")
    assert ended.tables == ("results.json", "tuning.json")
    table = json.loads((tmp_path / ended.files["tuning.json"]).read_bytes())
    assert len(table["data"]) == len(trials)
    assert "chosen" in table["columns"]


def test_the_system_is_watched_beside_the_open_runs(store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sender, "SECONDS_BETWEEN_SYSTEM_METRICS", 0.3)
    monkeypatch.setattr(sender, "SECONDS_BETWEEN_SENDS", 0.1)
    records(tmp_path, "system", POINTS[:1])
    with Records(tmp_path) as made:
        made.add(Record(comparison="system", run="lawa/1", status="RUNNING"))
    begin, end = os.pipe()

    def end_once_watched() -> None:
        try:
            # Cores take two looks.
            wait_for(lambda: "system/training_cpu_cores" in (tmp_path / FILE).read_text())
        finally:
            os.close(end)

    with os.fdopen(begin) as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", pipe)
        watching = threading.Thread(target=end_once_watched)
        watching.start()
        assert sender.follow(tmp_path, 30)
        watching.join()
    found = runs(store, "system")
    watched = {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/training_memory_megabytes",
        "system/training_cpu_cores",
    }
    assert watched <= set(found["lawa/1"].data.metrics)
    assert found["lawa/1"].data.metrics["system/training_memory_megabytes"] > 0
    # Of a run that has ended there is nothing more to be seen.
    assert not watched & set(found["lawa/0"].data.metrics)


@pytest.mark.slow
def test_a_server_that_is_away_is_waited_for_and_then_said_to_be(
    one_server: Server, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one_server.kill()
    port = one_server.port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    made = comparison(CURVES)
    with Tracker(made.plan, made.profile, folder=tmp_path, wait_seconds=0.1) as tracker:
        tracker.run_started("lawa", 0)
        for p in POINTS:
            tracker.point("lawa", 0, p)
        tracker.training_ended(made.trainings[0])
        tracker.log_report(made)
    (line,) = tracker.review_instructions()
    assert f"{count(tmp_path, 0)} record(s) did not reach MLflow" in line
    assert f"lie in {tmp_path}" in line
    assert "\n" not in line
    assert "secret" not in line
    assert (tracker.run_id, tracker.experiment_id) == ("", "")
    _, _, command = line.partition("send them with ")
    one_server.start()
    done = subprocess.run(
        shlex.split(command), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"of http://127.0.0.1:{port}")
    assert "secret" not in (tmp_path / "sent.json").read_text()
    assert history(store, runs(store, tracker.key)["lawa/0/4s"]) == VALUES


def test_the_line_that_starts_the_ui_has_no_password(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = comparison(CURVES)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@127.0.0.1:1/db")
    with Tracker(made.plan, made.profile, folder=tmp_path) as tracker:
        sender = sending()
        sender.kill()
        sender.wait()
        sent = Sent(store="postgresql://127.0.0.1:1/db", comparisons={tracker.key: "a1"})
        sent.write(tmp_path)
    (line,) = (line for line in tracker.review_instructions() if "mlflow ui" in line)
    assert 'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI" ' in line
    assert not any("secret" in line for line in tracker.review_instructions())


def half_made(folder: Path) -> bool:
    """Whether MLflow is in the middle of making its tables in a file there."""
    names = []
    for path in folder.glob("*mlflow.db*"):
        # It may be written to, or be a journal.
        with (
            contextlib.suppress(sqlite3.DatabaseError),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
        ):
            names += database.execute("SELECT name FROM sqlite_master").fetchall()
    return any(name.startswith("_alembic_tmp") for (name,) in names)


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    records(tmp_path / "records", "made", POINTS)
    command = [sys.executable, "-m", "baselines.tracking", str(tmp_path / "records")]
    with subprocess.Popen(command) as sender:
        while True:
            assert sender.poll() is None, "it was made before it could be killed"
            if half_made(tmp_path / "new"):
                sender.send_signal(signal.SIGSTOP)
                if half_made(tmp_path / "new"):
                    break
                sender.send_signal(signal.SIGCONT)
        sender.kill()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert history(store, runs(store, "made")["lawa/0"]) == VALUES
    artifacts = mlflow.MlflowClient(store).get_experiment("0").artifact_location
    assert Path(artifacts).parent == Path.cwd() / "mlruns"


@pytest.mark.slow
def test_a_server_killed_in_mid_run_gets_the_rest_when_it_is_back(
    one_server: Server, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = one_server.port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    made = comparison(CURVES)
    tracker = Tracker(made.plan, made.profile, folder=tmp_path, wait_seconds=60)
    one_server.start()
    with tracker:
        tracker.run_started("lawa", 0)
        tracker.point("lawa", 0, POINTS[0])
        wait_for(lambda: runs(store, tracker.key).get("lawa/0/4s"))
        one_server.kill()
        for p in POINTS[1:3]:
            tracker.point("lawa", 0, p)
        wait_for(lambda: Sent.read(tmp_path).failure)
        one_server.start()
        for p in POINTS[3:]:
            tracker.point("lawa", 0, p)
    found = runs(store, tracker.key)
    assert history(store, found["lawa/0/4s"]) == VALUES
    page, _, address = tracker.review_instructions()
    ui = f"http://127.0.0.1:{port}/#/experiments/{tracker.experiment_id}/runs"
    assert address.startswith(f"{ui}?")
    assert f"{ui}/{tracker.run_id}?" in page


def records_bytes(folder: Path) -> int:
    return (folder / "records.jsonl").stat().st_size


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tests.support.comparisons import CURVES, comparison
from tests.support.comparisons import POINTS
from baselines.tracking.tracker import Tracker
made = comparison(CURVES)
tracker = Tracker(made.plan, made.profile, key="killed", folder=Path({folder!r}))
tracker.__enter__()
tracker.run_started("lawa", 0)
for p in POINTS:
    tracker.point("lawa", 0, p)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_a_killed_training_wrote_down_is_sent(store: str, tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent.parent.parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(
        lambda: Sent.read(tmp_path).offset_bytes == records_bytes(tmp_path),
        lambda: f"{Sent.read(tmp_path)} {(tmp_path / 'sending.log').read_text()}",
    )
    found = runs(store, "killed")
    assert history(store, found["lawa/0/4s"]) == VALUES
