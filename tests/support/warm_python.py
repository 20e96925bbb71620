"""A Python that has imported what is slow to import, and runs each command in a fork of itself.

Half of a small command's processor time goes into the import of PyTorch, SciPy and MLflow, and a
comparison starts a process to publish and some to calibrate besides. One server for all that run
the tests imports these once; `executable()` is a program that takes what `python` takes and has the
server fork a process that does it, with the same files, folder and environment. It stands in
`sys.executable` there, so that what such a process starts begins warm as well.

Nothing of the product is imported beforehand. What tests imports, PYTHONPATH, what Python does at
its start, or what others see of a process, starts the real one.
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What `python` is given first by what our own code starts; anything else gets the real one.
PROGRAM = """#!{python} -ISs
import os, sys
words = sys.argv[1:]
while words and words[0] in ("-u", "-B"):
    if words.pop(0) == "-u":
        os.environ["PYTHONUNBUFFERED"] = "1"
if not words or (words[0][:1] == "-" and words[0] not in ("-m", "-c")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
sys.path.insert(0, {support!r})
from warm_python import Process, inherited
import signal
process = Process({folder!r}, words, os.getcwd(), dict(os.environ), inherited())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: process.send_signal(number))
status = process.wait()
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class Process:
    """A process that the server has forked; it is killed when this object's process ends.

    Attributes:
        pid: its own.
        returncode: as `subprocess.Popen` has it.
    """

    def __init__(
        self,
        folder: str,
        words: list[str],
        cwd: str,
        environment: dict[str, str],
        files: dict[int, int],
    ) -> None:
        """Start what `python WORDS` does, whose open files are by number those of this process."""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(f"{folder}/socket")
        request = {
            "words": words,
            "cwd": cwd,
            "environment": environment,
            "files": list(files),
            "leads": os.getsid(0) == os.getpid(),
        }
        data = json.dumps(request).encode()
        self._connection.sendall(len(data).to_bytes(8, "big"))
        with_files = array.array("i", files.values())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, with_files)]
        self._connection.sendmsg([b"f"], rights)
        self._connection.sendall(data)
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status if it has ended."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(0):
                    self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for its end, and return its exit status; that of a signal is below zero."""
        if self.returncode is None:
            line = self._answers.readline()
            if not line:
                raise RuntimeError("the server of warm processes is gone")
            self.returncode = int(line)
            self._answers.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


def inherited() -> dict[int, int]:
    """Return the open files that a process keeps when it becomes another program."""
    found = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return {number: number for number in found if _is_inherited(number)}


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


@functools.cache
def folder() -> str:
    """Start the server unless another process of this run of the tests has, and return where."""
    from filelock import FileLock

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    found = Path(tempfile.gettempdir(), f"warm-python-{run[:16]}")
    found.mkdir(exist_ok=True)
    with FileLock(found / "lock"):
        if not (found / "socket").exists():
            _start(found)
        lease = socket.socket(socket.AF_UNIX)
        lease.connect(str(found / "socket"))
    # Until this process ends, for as long as others may the server stay.
    atexit.register(lease.close)
    return str(found)


def _start(found: Path) -> None:
    with (found / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_server.py"), found],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # Whatever looks for a GPU while it is imported must not begin to use it.
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            },
            start_new_session=True,
        )
    while not (found / "socket").exists():
        if server.poll() is not None:
            raise RuntimeError(f"no warm Python: {(found / 'log').read_text()}")
        time.sleep(0.05)
    # It outlives whoever started it.
    server.returncode = 0
    program = found / "python"
    text = PROGRAM.format(
        python=sys.executable, support=str(Path(__file__).parent), folder=str(found)
    )
    program.write_text(text)
    program.chmod(0o755)


def executable() -> str:
    """Return the program that stands for `python` and begins warm."""
    return f"{folder()}/python"
