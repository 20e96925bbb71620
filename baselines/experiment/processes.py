"""Start processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from baselines.experiment.engine import Job, Work, last_line
from timing import limits

# By one process that then forks for each task: it takes seconds. No more than this, for what looks
# for a GPU while it is imported would keep the forks from using it.
_IMPORTED_ONCE = ["baselines.experiment.worker"]


def free_core_count(look_seconds: float = 0.3) -> int:
    """Return how many of the cores that this process may use are idle now; 1 at the least."""
    busy = psutil.cpu_percent(look_seconds, percpu=True)
    own = limits.cores()
    kept = [share for core, share in enumerate(busy) if own is None or core in own]
    # A core that is half busy is no core to train on.
    free = sum(share < 50 for share in kept)
    return max(1, min(free, limits.core_count()))


class Processes:
    """An engine on this machine: a process for each task, which ends when this one does.

    Not a pool of `concurrent.futures`: one killed process, as by a machine that is short of memory,
    would break the pool for all.
    """

    def __init__(self) -> None:
        # What forks has imported and done nothing else: no thread of it and no GPU is in use.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_IMPORTED_ONCE)
        self._jobs: list[_ProcessJob] = []

    def submit(self, work: Work, folder: str, index: int, files: dict[str, str], /) -> Job:
        """Start the process that runs this task."""
        log = Path(self._logs.name, str(len(self._jobs)))
        process = self._context.Process(target=_run, args=(log, work, folder, index, files))
        process.start()
        self._jobs.append(_ProcessJob(process, log))
        return self._jobs[-1]

    def __enter__(self) -> Processes:
        # Not before: a dry run makes an engine that it never enters.
        self._logs = tempfile.TemporaryDirectory(prefix="lawa-opt-")
        return self

    def __exit__(self, *exception: object) -> None:
        for job in self._jobs:
            job.kill()
        self._logs.cleanup()


class _ProcessJob:
    """A process on its way, and the file that its standard error goes to."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self._process, self._log = process, log

    def done(self) -> bool:
        return self._process.exitcode is not None

    def result(self) -> None:
        self._process.join()
        status = self._process.exitcode or 0
        if status:
            said = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
            raise RuntimeError(f"its process {_ending(status)}{said and ': '}{last_line(said)}")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run(log: Path, work: Work, folder: str, index: int, files: dict[str, str]) -> None:
    """Run a task, in its own process."""
    # An interrupt from the keyboard is for the process that started this one.
    os.setsid()
    threading.Thread(target=_exit_with_the_starter, daemon=True).start()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    work(folder, index, files)


def _exit_with_the_starter() -> None:
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)


def _ending(status: int) -> str:
    """Return how a process ended, by its exit status."""
    if status >= 0:
        return f"ended with status {status}"
    if -status == signal.SIGKILL:
        return "was killed by SIGKILL, as it is where memory is short"
    return f"was ended by {signal.Signals(-status).name}"
