"""A real MLflow server, for the tests that need one."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support import warm_python
from tests.support.stores import empty_store
from tests.support.waiting import wait_for


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server over the store in a folder, which is there after it, too."""
    # One that was killed there before is gone in a moment.
    wait_for(lambda: not is_answered(port))
    empty_store(folder)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(warm_python.executable(), "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=log,
            stderr=log,
            # Its workers go with it.
            start_new_session=True,
        )
    try:
        wait_until_it_answers(process, port, folder / "server.log")
        yield process
    finally:
        stop(process)


def is_answered(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a server with its workers, in no orderly way."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def wait_until_it_answers(
    process: subprocess.Popen[bytes], port: int, log: Path | None = None
) -> None:
    """Wait for a server; one that ends, or takes too long, fails with what it logged."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"MLflow's server did not start: {log.read_text() if log else ''}")
