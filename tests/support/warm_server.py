"""The server of `warm_python`: imports once, and forks a process for each request.

python warm_server.py FOLDER     # serves at FOLDER/socket, until nobody holds a connection
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.spawn
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

IMPORTED_ONCE = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "scipy.stats",
    "sklearn.datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mlflow",
    "mlflow.models",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "typer",
    "rich.progress",
    "pydantic",
    "filelock",
    "safetensors.torch",
)


class _Child:
    """What the server knows of a process."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.connection = pid, connection


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return what is asked for and the files for it; None where nothing is."""
    size = _receive(connection, 8)
    if not size:
        return None
    _, files, _, _ = socket.recv_fds(connection, 1, 250)
    return json.loads(_receive(connection, int.from_bytes(size, "big"))), files


def _serve(at: Path) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for each request; return in each of them alone, with its request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(at / "being-made"))
    listener.listen(64)
    # Found only once it is listened to.
    (at / "being-made").rename(at / "socket")
    waking, wake = os.pipe()
    for number in (waking, wake):
        os.set_blocking(number, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, _Child] = {}
    leases = 0
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(waking, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is waking:
                os.read(waking, 4096)
                _reap(children, selector)
            elif key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
                leases += 1
            elif isinstance(key.data, _Child):
                # It says nothing, so this is the end of what started it.
                if key.data.pid in children:
                    _kill(key.data)
                    selector.unregister(key.fileobj)
            else:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                leases -= 1
                selector.unregister(connection)
                if not (asked := _request(connection)):
                    connection.close()
                    if not leases:
                        shutil.rmtree(at, ignore_errors=True)
                        for child in children.values():
                            _kill(child)
                        os._exit(0)
                    continue
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    return asked
                for number in asked[1]:
                    os.close(number)
                children[pid] = _Child(pid, connection)
                connection.sendall(f"{pid}\n".encode())
                selector.register(connection, selectors.EVENT_READ, children[pid])


def _kill(child: _Child) -> None:
    with_all = os.getpgid(child.pid) == child.pid
    (os.killpg if with_all else os.kill)(child.pid, signal.SIGKILL)


def _reap(children: dict[int, _Child], selector: selectors.BaseSelector) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        child = children.pop(pid)
        # Nobody may be there to be told.
        with contextlib.suppress(OSError, KeyError):
            child.connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            selector.unregister(child.connection)
        child.connection.close()


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """Make this process what the real one would be before its first line."""
    import numpy
    import torch

    # Out of the way of the numbers that they are to have; and nothing else stays open.
    above = max([*asked["files"], *files]) + 1
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, above) for number in files]
    os.closerange(0, above)
    for number, file in zip(asked["files"], moved, strict=True):
        os.dup2(file, number)
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))
    if asked["leads"]:
        os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if threads := os.environ.get("OMP_NUM_THREADS", ""):
        torch.set_num_threads(int(threads))
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        by_line = name == "stderr" or (name == "stdout" and "PYTHONUNBUFFERED" in os.environ)
        stream = open(  # noqa: SIM115
            number,
            mode,
            buffering=1 if by_line else -1,
            encoding="utf-8",
            errors=errors,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    numpy.random.seed()
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _run(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _status_of(words: list[str]) -> int:
    """Do it, and return the exit status that Python gives it."""
    try:
        _run(words)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(status: int) -> NoReturn:
    """End as Python does, but for taking thousands of modules apart, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def main() -> None:
    """Import, serve, and go on as each command in a process of its own."""
    at = Path(sys.argv[1])
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    # The first one imports as much again.
    torch = sys.modules["torch"]
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))
    sys.executable = str(at / "python")
    multiprocessing.spawn.set_executable(sys.executable)
    gc.collect()
    gc.freeze()
    asked, files = _serve(at)
    _become(asked, files)
    _end(_status_of(asked["words"]))


if __name__ == "__main__":
    main()
