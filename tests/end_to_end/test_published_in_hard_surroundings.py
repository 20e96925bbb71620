"""Publishing in hard surroundings: strange names, secrets, removed folders, kills, lost servers."""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.support import warm_python
from tests.support.commands import Command, command
from tests.support.in_mlflow import history, runs_of
from tests.support.published import (
    COMPARE,
    FILES,
    FIRST,
    assert_all_is_there,
    client_of,
    points_of,
    prepare,
    publish,
    root_of,
    trained_without_mlflow,
)
from tests.support.stores import empty_store
from tests.support.tracking_server import free_port, server, wait_until_it_answers
from tests.support.user_files import WAITS, averager
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def unsent() -> Path:
    """A comparison that was trained where there is no MLflow, to be copied."""
    return trained_without_mlflow()


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
    assert "Not all is in MLflow" not in done.stdout
    assert {path.name for path in folder.iterdir()} - before == {"mlflow.db", "mlruns"}
    # Read from elsewhere: MLflow itself leaves something beside such a folder.
    shutil.copy(folder / "mlflow.db", tmp_path)
    assert_all_is_there(client_of(tmp_path), folder)
    # What is printed starts a UI that shows it, wherever it is typed.
    (report,) = folder.glob("mlruns/*/*/artifacts/report.md")
    (line,) = (line for line in done.stdout.splitlines() if " mlflow ui " in line)
    assert line.endswith(" --host 127.0.0.1 --port 5000 --workers 1)")
    run = re.search(
        r"^Table, verdict and plots: .*/runs/(\w+)/artifacts/report.html\?",
        done.stdout,
        re.MULTILINE,
    )
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


def test_nor_is_it_where_the_name_looks_like_a_quoted_one(unsent: Path, tmp_path: Path) -> None:
    folder = tmp_path / "only" / "a%20b%23"
    shutil.copytree(unsent, folder)
    done = publish(folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.parent.iterdir()) == [folder]
    shutil.copy(folder / "mlflow.db", tmp_path)
    assert_all_is_there(client_of(tmp_path), folder)
    assert len(list(folder.glob("mlruns/**/report.md"))) == 1


LEAKS = averager("""
    def after_step(self, spent):
        secrets = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_TOKEN"]
        if spent < 0.1:
            # It leaks in training, and not when a step of it is tried before.
            return
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
    away = publish(folder, "--wait", "0", **secret)
    assert away.returncode == 1
    assert f"error: API request to http://127.0.0.1:{port}/api" in away.stderr
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
    assert any("baselines publish" in line for line in command_lines)
    for text in ("p%40ss-w0rd", "p@ss-w0rd", "t0ken-of-mallory"):
        assert not any(text in part for part in said)
        assert not any(text.encode() in content for content in files)
        assert not any(text in line for line in command_lines)


def test_a_folder_that_was_removed_in_mid_run_is_said_to_be_gone(tmp_path: Path) -> None:
    prepare(tmp_path)
    empty_store(tmp_path)  # or two processes would make one at once
    (tmp_path / "waits.py").write_text(WAITS)
    with subprocess.Popen(
        [warm_python.executable(), "-m", "baselines", *COMPARE, "--methods", "waits.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            client = client_of(tmp_path)
            wait_for(lambda: list(tmp_path.glob("mlflow.db")))
            wait_for(lambda: len(runs_of(client)) == 2)
            root = root_of(tmp_path)
            # While it is written to.
            wait_for(lambda: shutil.rmtree(root, ignore_errors=True) or not root.exists())
            (tmp_path / "go").touch()
            said = running.communicate()[0]
        finally:
            running.kill()
    assert "was removed meanwhile, and with it all that had not reached MLflow by then" in said
    assert not root.exists()
    # Nothing more will be known of them, and they are not called running for ever.
    assert {run.info.status for run in runs_of(client).values()} == {"KILLED"}


# A recipe that gives the server time to be killed in, and the machine none to do.
TAKES_ITS_TIME = WAITS.replace(
    "while spent > 0.5",
    'if not Path("go").exists():\n            time.sleep(0.08)\n        while spent > 0.8',
)
KILLS = 4


@pytest.mark.timeout(600)
def test_a_server_killed_again_and_again_has_it_all_in_the_end_and_nothing_twice(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    (tmp_path / "slow.py").write_text(TAKES_ITS_TIME)
    options = (*COMPARE, "--seeds", "2", "--methods", "slow.py,lawa")
    with subprocess.Popen(
        [warm_python.executable(), "-m", "baselines", *options],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            for _ in range(KILLS):
                # Killed on leaving, at a moment of no choice.
                with server(tmp_path, port):
                    time.sleep(random.uniform(0.2, 2.0))
            assert running.poll() is None, running.communicate()[0]
            (tmp_path / "go").touch()
            with server(tmp_path, port):
                said = running.communicate()[0]
                assert running.returncode == 0, said
                assert_all_is_there(mlflow.MlflowClient(address), tmp_path, count=4)
        finally:
            running.kill()


def test_a_command_that_was_killed_is_told_and_given_again_goes_on_in_the_same_runs(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    empty_store(tmp_path)
    (tmp_path / "waits.py").write_text(WAITS)
    options = (*COMPARE, "--methods", "constant,waits.py", "--no-publish")
    killed = Command(tmp_path, "baselines", *options)
    wait_for(lambda: len(points_of(tmp_path).get("waits.py, seed 0", [])) > 3)
    during = publish(tmp_path)
    assert during.returncode == 0, during.stderr
    client = client_of(tmp_path)
    first = runs_of(client)
    (parent,) = first.keys() - {"constant, seed 0", "waits.py, seed 0"}
    assert statuses(first) == {
        parent: "RUNNING",
        "constant, seed 0": "FINISHED",
        "waits.py, seed 0": "RUNNING",
    }
    assert len(history(client, first["waits.py, seed 0"])) > 3
    killed.kill()
    killed.end()
    assert publish(tmp_path).returncode == 0
    assert statuses(runs_of(client)) == {
        parent: "KILLED",
        "constant, seed 0": "FINISHED",
        "waits.py, seed 0": "KILLED",
    }
    (tmp_path / "go").touch()
    done = Command(tmp_path, "baselines", *options).end()
    assert done.returncode == 0, done.stderr
    said = f"Nothing was sent to MLflow: {warm_python.executable()} -m baselines publish lawa-runs/"
    assert said in done.stdout
    assert publish(tmp_path).returncode == 0
    assert_all_is_there(client, tmp_path, count=2)
    assert {run.info.run_id for run in runs_of(client).values()} == {
        run.info.run_id for run in first.values()
    }


def statuses(runs: dict[str, mlflow.entities.Run]) -> dict[str, str]:
    return {name: run.info.status for name, run in runs.items()}


def test_what_was_trained_without_mlflow_is_published_where_there_is_one(
    unsent: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(unsent, tmp_path / "project"))
    for name in FILES:
        # Nor is anything run that the folder names.
        (folder / name).unlink()
    done = publish(folder)
    assert done.returncode == 0, done.stderr
    assert_all_is_there(client_of(folder), folder)
