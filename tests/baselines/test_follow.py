"""What follows a comparison while it runs, whatever happens to the server or the store."""

import contextlib
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from baselines.experiment.comparison import Comparison
from baselines.experiment.lock import Lock
from baselines.experiment.manifest import Manifest
from baselines.tracking.follow import Follower
from baselines.training.events import Evaluated, Event, EventLog, Started, ending_of
from tests.support import warm_python
from tests.support.commands import Command, command
from tests.support.comparisons import CURVES, comparison, kept
from tests.support.in_mlflow import history, runs_of
from tests.support.stores import empty_store
from tests.support.tracking_server import free_port, server, stop
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


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
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("following")
    empty_store(folder)
    return folder


@pytest.fixture(scope="module")
def one_server(home: Path) -> Iterator[Server]:
    made = Server(home)
    yield made
    made.kill()


@pytest.fixture
def client(home: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


class Training:
    """A comparison of one method, whose only training a test carries out event by event."""

    def __init__(self, root: Path) -> None:
        self.made: Comparison = comparison({"lawa": CURVES["lawa"][:1]})
        self.root = kept(self.made, root)
        (self.log,) = root.rglob("events.jsonl")
        self.log.unlink()
        (run,) = self.made.runs
        self.values = [(point.step, point.value) for point in run.points]
        self.start = Started(seed=0, shares={"lawa": 1.0})
        self.points = [Evaluated(seed=0, method="lawa", point=point) for point in run.points]
        self.end = ending_of(self.made.trainings[0], 0)

    def tell(self, *events: Event) -> None:
        with EventLog(self.log.parent) as log:
            for event in events:
                log.append(event)

    @property
    def key(self) -> str:
        return Manifest.read(self.root / "4s").id

    def run(self, client: mlflow.MlflowClient) -> mlflow.entities.Run | None:
        return runs_of(client, key=self.key).get("lawa/0/4s")


def test_points_and_the_system_appear_while_it_runs(
    home: Path, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.3")
    training = Training(tmp_path)

    def metrics_of(name: str) -> set[str]:
        return set(runs_of(client, key=training.key)[name].data.metrics)

    with Follower(tmp_path) as follower:
        training.tell(training.start, *training.points[:2])
        wait_for(lambda: training.run(client))
        wait_for(lambda: history(client, training.run(client)) == training.values[:2])
        assert training.run(client).info.status == "RUNNING"
        watched = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
        wait_for(lambda: watched <= metrics_of("comparison"))
        training.tell(*training.points[2:], training.end)
    assert not follower.has_failed
    assert follower.said[0].endswith(": 1 runs with 4 points.")
    assert history(client, training.run(client)) == training.values
    assert {run.info.status for run in runs_of(client, key=training.key).values()} == {"FINISHED"}
    assert not watched & metrics_of("lawa/0/4s")


def test_what_has_not_ended_when_its_command_does_is_killed(
    home: Path, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    training = Training(tmp_path)

    def cut_off() -> None:
        # Which a process that ends has until it is gone.
        with Lock(tmp_path), Follower(tmp_path):
            training.tell(training.start, training.points[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    found = runs_of(client, key=training.key)
    assert {run.info.status for run in found.values()} == {"KILLED"}
    assert history(client, found["lawa/0/4s"]) == training.values[:1]
    # Nobody asks how to review what did not end.
    assert capsys.readouterr().out == ""


def test_a_server_that_is_away_is_waited_for_and_then_said_to_be(
    one_server: Server,
    client: mlflow.MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    one_server.kill()
    port = one_server.port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    training = Training(tmp_path / "root")
    with Follower(tmp_path / "root", wait_seconds=0.1) as follower:
        training.tell(training.start, *training.points, training.end)
    (line,) = follower.said
    assert line.startswith("Not all is in MLflow (API request to http://127.0.0.1")
    assert "secret" not in line
    _, _, typed = line.partition("send it with ")
    one_server.start()
    done = subprocess.run(
        shlex.split(typed), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, page, _, address = done.stdout.splitlines()
    assert said.startswith(f"Published to the experiment 'lawa-opt' of http://127.0.0.1:{port}: 1 ")
    ui = f"http://127.0.0.1:{port}/#/experiments/"
    assert page.partition(ui)[2].partition("/runs/")[2]
    assert address.startswith(ui)
    assert "secret" not in done.stdout
    assert not any(
        b"secret" in path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()
    )
    assert history(client, training.run(client)) == training.values


def test_a_server_killed_in_mid_run_gets_the_rest_when_it_is_back(
    one_server: Server,
    client: mlflow.MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{one_server.port}")
    training = Training(tmp_path)
    one_server.start()
    with Follower(tmp_path, wait_seconds=60) as follower:
        training.tell(training.start, training.points[0])
        wait_for(lambda: training.run(client))
        one_server.kill()
        training.tell(*training.points[1:3])
        one_server.start()
        training.tell(*training.points[3:], training.end)
    assert not follower.has_failed, follower.said
    assert history(client, training.run(client)) == training.values


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


def test_a_store_whose_making_was_killed_is_made_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    training = Training(tmp_path / "root")
    training.tell(training.start, *training.points, training.end)
    publisher = Command(Path.cwd(), "baselines", "publish", str(training.root))
    while True:
        assert publisher.poll() is None, "it was made before it could be killed"
        if half_made(tmp_path / "new"):
            publisher.send_signal(signal.SIGSTOP)
            if half_made(tmp_path / "new"):
                break
            publisher.send_signal(signal.SIGCONT)
    publisher.kill()
    publisher.end()
    done = Command(Path.cwd(), "baselines", "publish", str(training.root)).end()
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(store)
    assert history(client, training.run(client)) == training.values
    artifacts = client.get_experiment("0").artifact_location
    assert Path(artifacts).parent == Path.cwd() / "mlruns"


def test_two_at_once_publish_one_after_the_other(tmp_path: Path) -> None:
    training = Training(tmp_path / "root")
    training.tell(training.start, *training.points, training.end)
    empty_store(tmp_path)
    line = [warm_python.executable(), "-m", "baselines", "publish", "root"]
    with Lock(tmp_path / "root" / "publishing"):
        waiting = subprocess.Popen(
            line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr
        assert waiting.stderr.readline() == "another process publishes root: waiting\n"
        assert waiting.poll() is None
    done = command(tmp_path, "publish", "root")
    # Whichever came second has nothing new to say.
    said = [
        text.replace("nothing new, it has the ", "")
        for text in (waiting.communicate()[0], done.stdout)
    ]
    assert said[0] == said[1]
    assert (waiting.returncode, done.returncode) == (0, 0)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(runs_of(client)) == 2
