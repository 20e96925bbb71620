"""What the commands leave in a real MLflow store and on disk, in hard surroundings."""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import psutil
import pytest

from baselines.training.events import fold, read_events
from tests.support.commands import Command, command
from tests.support.kept_comparison import plan_of
from tests.support.profiles import profile_of
from tests.support.tracking_server import free_port, server, wait_until_it_answers
from tests.support.trainings import COSTS
from tests.support.user_files import WAITS, averager
from tests.support.waiting import wait_for

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
    *("compare", "--workload", "digits", "--seeds", "1", "--budget", "1.5s", "--lr", "0.05"),
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


def records_of(folder: Path) -> Path:
    (found,) = folder.glob("lawa-runs/*/*/records")
    return found


def tracking(
    folder: Path, *options: str, begin: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m baselines.tracking` on the one comparison of a folder, run in it."""
    records, every = records_of(folder), {**os.environ, **environment}
    if not begin:
        return Command(
            folder, "baselines.tracking", *options, str(records), environment=every
        ).end()
    return subprocess.run(
        [*begin, sys.executable, "-m", "baselines.tracking", *options, records],
        cwd=folder,
        env=every,
        capture_output=True,
        text=True,
        check=False,
    )


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(client: mlflow.MlflowClient, name: str = "lawa-opt") -> dict[str, mlflow.entities.Run]:
    """All runs of an experiment by name, no two alike."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return {}
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def points_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and metric of all evaluations, by the run's name, as the comparison keeps them."""
    return {
        f"{run.method}, seed {run.seed}": [(p.step, p.value) for p in run.points]
        for path in folder.glob("lawa-runs/*/*/*-seed-*")
        for run in (fold(read_events(path)) or pytest.fail("it has not ended")).runs
    }


def history(
    client: mlflow.MlflowClient, run: mlflow.entities.Run, metric: str = "validation/metric"
) -> list[tuple[int, float]]:
    found = client.get_metric_history(run.info.run_id, metric)
    return [(metric.step, metric.value) for metric in found]


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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose experiment is deleted."""
    folder = prepare(tmp_path_factory.mktemp("deleted") / "project")
    # MLflow keeps files where the store was made from.
    with contextlib.chdir(folder):
        client = client_of(folder)
        client.delete_experiment(client.create_experiment("lawa-opt"))
    return folder


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    """A comparison that MLflow took nothing of."""
    done = command(home, *FIRST)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def unsent(home: Path, first: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, to be copied on."""
    folder = tmp_path_factory.mktemp("unsent") / "project"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("mlflow.db", "mlruns"))
    return folder


@pytest.fixture(scope="module")
def sent(home: Path, unsent: Path) -> list[subprocess.CompletedProcess[str]]:
    """What sending it said before the experiment was restored, and after."""
    before = tracking(home)
    client_of(home).restore_experiment("1")
    return [before, tracking(home)]


def test_a_deleted_experiment_is_said_with_its_remedy_and_gets_all_once_restored(
    home: Path, first: subprocess.CompletedProcess[str], sent: list
) -> None:
    said = (
        "(the experiment 'lawa-opt' is deleted: restore it with MLFLOW_DISABLE_TELEMETRY=true "
        "python -m mlflow experiments restore --experiment-id 1, or name another one in "
        "MLFLOW_EXPERIMENT_NAME)"
    )
    (line,) = (line for line in first.stdout.splitlines() if "did not reach MLflow" in line)
    assert said in line
    before, after = sent
    assert before.returncode == 1
    assert said[1:-1] in before.stderr
    assert before.stdout == ""
    assert after.returncode == 0, after.stderr
    count = len((records_of(home) / "records.jsonl").read_text().splitlines())
    where = f"the experiment 'lawa-opt' of sqlite:///{home}/mlflow.db"
    assert after.stdout == f"all is sent: {count} record(s) are in {where}\n"
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
    done = tracking(home)
    assert done.returncode == 1
    assert re.search(r"^\d+ of \d+ record\(s\) were refused: the run 'swa, seed 0'", done.stderr)
    assert f"python -m mlflow runs restore --run-id {lost}" in done.stderr
    assert len(runs_of(client)) == len(METHODS)
    client.restore_run(lost)
    assert tracking(home).returncode == 0
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
        assert f"/runs/{runs[parent].info.run_id}?" in done.stdout
        assert f"sqlite:///{moved}/mlflow.db" in done.stdout
        # MLflow's own paths do not move, and that is said.
        (line,) = (line for line in done.stdout.splitlines() if "were refused" in line)
        assert f"files of this experiment in {home}/mlruns, and there is no {home} here" in line
    finally:
        moved.rename(home)
    assert tracking(home).returncode == 0
    assert_all_is_there(client_of(home), home)


def test_what_another_store_took_is_sent_to_this_one_too(
    home: Path, sent: list, tmp_path: Path
) -> None:
    shutil.copytree(
        home, tmp_path / "project", ignore=shutil.ignore_patterns("mlflow.db", "mlruns")
    )
    done = tracking(tmp_path / "project")
    client = client_of(tmp_path / "project")
    runs, kept = runs_of(client), points_of(home)
    assert all(history(client, runs[name]) == points for name, points in kept.items())
    # The models were removed when they had arrived elsewhere.
    assert done.returncode == 1
    assert f"{len(METHODS)} of " in done.stderr
    assert re.search(r"the model '\w+ \S+ 0' is not in this store, and was removed", done.stderr)


@pytest.fixture
def read_only() -> Iterator[tuple[Path, list[str]]]:
    """A folder that cannot be written, for commands begun so; not even by root."""
    begin: list[str] = []
    if os.geteuid() == 0:
        begin = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if not shutil.which("setpriv") or subprocess.run([*begin, "true"], check=False).returncode:
            pytest.skip("root can write everywhere here: needs setpriv, and the right to use it")
    with tempfile.TemporaryDirectory() as made:
        yield Path(made), begin
        Path(made).chmod(0o700)


def test_nothing_is_left_beside_a_folder_with_a_strange_name(
    unsent: Path, read_only: tuple[Path, list[str]], tmp_path: Path
) -> None:
    parent, begin = read_only
    folder = parent / "my runs #1?ü'$;&"
    shutil.copytree(unsent, folder)
    before = {path.name for path in folder.iterdir()}
    parent.chmod(0o555)
    done = subprocess.run(
        [*begin, sys.executable, "-m", "baselines", *FIRST],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MLflow (" not in done.stdout
    assert {path.name for path in folder.iterdir()} - before == {"mlflow.db", "mlruns"}
    # Read from elsewhere: MLflow itself leaves something beside such a folder.
    shutil.copy(folder / "mlflow.db", tmp_path)
    assert_all_is_there(client_of(tmp_path), folder)
    # What is printed starts a UI that shows it, wherever it is typed.
    (report,) = folder.glob("mlruns/*/*/artifacts/report.md")
    (line,) = (line for line in done.stdout.splitlines() if " mlflow ui " in line)
    assert line.endswith(" --host 127.0.0.1 --port 5000 --workers 1)")
    run = re.search(r"^Table, verdict and plots: .*/runs/(\w+)\?", done.stdout, re.MULTILINE)
    assert run
    port = free_port()
    with subprocess.Popen(
        [*begin, "sh", "-c", line.replace("--port 5000", f"--port {port}")],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as ui:
        try:
            wait_until_it_answers(ui, port)
            address = f"http://127.0.0.1:{port}/get-artifact?path=report.md&run_uuid={run[1]}"
            with urllib.request.urlopen(address) as answer:
                assert answer.read() == report.read_bytes()
            servers = psutil.Process(ui.pid).children(recursive=True)
            assert {p.environ().get("MLFLOW_DISABLE_TELEMETRY") for p in servers} == {"true"}
        finally:
            os.killpg(ui.pid, 9)
    assert list(parent.iterdir()) == [folder]


def test_nor_is_it_where_the_name_looks_like_a_quoted_one(
    unsent: Path, read_only: tuple[Path, list[str]], tmp_path: Path
) -> None:
    parent, begin = read_only
    folder = parent / "a%20b%23"
    shutil.copytree(unsent, folder)
    parent.chmod(0o555)
    done = tracking(folder, begin=begin)
    assert done.returncode == 0, done.stderr
    assert list(parent.iterdir()) == [folder]
    shutil.copy(folder / "mlflow.db", tmp_path)
    assert_all_is_there(client_of(tmp_path), folder)
    assert len(list(folder.glob("mlruns/**/report.md"))) == 1


LEAKS = averager("""
    def after_step(self, spent):
        secrets = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_TOKEN"]
        raise RuntimeError(f"API request to {secrets[0]}/api failed, with {secrets[1]}")
""")


def test_no_password_is_written_shown_or_on_a_command_line(unsent: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "project", free_port()
    shutil.copytree(unsent, folder)
    (folder / "leaks.py").write_text(LEAKS)
    secret = {
        "MLFLOW_TRACKING_URI": f"http://mallory:p%40ss-w0rd@127.0.0.1:{port}",
        "MLFLOW_TRACKING_TOKEN": "t0ken-of-mallory",
        # Where a traceback may be written to.
        "TMPDIR": str(tmp_path / "temporary"),
    }
    (tmp_path / "temporary").mkdir()
    away = tracking(folder, "--wait", "0", **secret)
    assert away.returncode == 1
    assert f"not sent: API request to http://127.0.0.1:{port}/api" in away.stderr
    command_lines: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for process in psutil.process_iter(["cmdline"]):
                command_lines.add(" ".join(process.info["cmdline"] or ()))

    (tmp_path / "store").mkdir()
    with server(tmp_path / "store", port):
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            failed = command(folder, *COMPARE, "--methods", "constant,leaks.py", **secret)
        finally:
            ended.set()
            watching.join()
    assert re.search("leaks.py, seed 0: FAILED .*: API request to http://127", failed.stdout), (
        failed.stdout
    )
    runs = runs_of(client_of(tmp_path / "store"))
    assert runs["constant, seed 0"].info.status == "FINISHED"
    assert runs["leaks.py, seed 0"].data.tags["failure"].count("failed, with ***") == 1
    said = [part for done in (away, failed) for part in (done.stdout, done.stderr)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("baselines.tracking" in line for line in command_lines)
    for text in ("p%40ss-w0rd", "p@ss-w0rd", "t0ken-of-mallory"):
        assert not any(text in part for part in said)
        assert not any(text.encode() in content for content in files)
        assert not any(text in line for line in command_lines)


def test_records_that_were_removed_in_mid_run_are_said_to_be_gone(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "waits.py").write_text(WAITS)
    with subprocess.Popen(
        [sys.executable, "-m", "baselines", *COMPARE, "--methods", "waits.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            client = client_of(tmp_path)
            wait_for(lambda: list(tmp_path.glob("mlflow.db")))
            wait_for(lambda: len(runs_of(client)) == 2)
            records = records_of(tmp_path)
            # While it is written to.
            wait_for(lambda: shutil.rmtree(records, ignore_errors=True) or not records.exists())
            shutil.rmtree(records.parent.parent)
            (tmp_path / "go").touch()
            said = running.communicate()[0]
        finally:
            running.kill()
    gone = f"The records for MLflow are gone: {records.relative_to(tmp_path)} was removed"
    assert said.count(gone) == 1
    assert not records.exists()
    # Nothing more will be known of them, and they are not called running for ever.
    assert {run.info.status for run in runs_of(client).values()} == {"KILLED"}


@pytest.mark.timeout(1200)
def test_a_server_killed_again_and_again_has_it_all_in_the_end_and_nothing_twice(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    port = free_port()
    options = (*COMPARE, "--budget", "20s", "--seeds", "2", "--methods", "constant,lawa,decayed")
    kills = 0
    with subprocess.Popen(
        [sys.executable, "-m", "baselines", *options],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            while running.poll() is None:
                # Killed on leaving, at a moment of no choice.
                with server(tmp_path, port), contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(random.uniform(0.2, 5.0))
                kills += running.poll() is None
            said = running.communicate()[0]
        finally:
            running.kill()
    print(f"server killed {kills} times")
    assert running.returncode == 0, said
    assert kills >= 3
    address = f"http://127.0.0.1:{port}"
    with server(tmp_path, port):
        # The last kill may have come when nothing was left to wait for.
        (records,) = tmp_path.glob("lawa-runs/*/20s/records")
        send = [sys.executable, "-m", "baselines.tracking", str(records)]
        env = {**os.environ, "MLFLOW_TRACKING_URI": address}
        sent = subprocess.run(send, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        assert_all_is_there(mlflow.MlflowClient(address), tmp_path, count=6)
