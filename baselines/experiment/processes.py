"""Start processes on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from baselines.experiment.engine import Job, Work, last_line


class Processes:
    """An engine on this machine: a process for each task, which ends when this one does.

    Not a pool of `concurrent.futures`: one killed process, as by a machine that is short of memory,
    would break the pool for all.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1000)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def submit(self, _: Work, folder: str, index: int, files: dict[str, str], /) -> Job:
        """Start the process that runs this task."""
        may_run = [word for file in files.items() for word in ("--may-run", *file)]
        command = [
            sys.executable,
            "-m",
            "baselines.experiment.worker",
            *may_run,
            "--",
            folder,
            str(index),
        ]
        return self._threads.submit(self._run, command)

    def _run(self, command: list[str]) -> None:
        # It ends when this pipe does, also where this process is killed.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            self._running.add(process)
            if self._ended:
                process.kill()
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace").strip()
            status = process.wait()
            self._running.discard(process)
        if status:
            raise RuntimeError(f"its process {_ending(status)}{said and ': '}{last_line(said)}")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        for process in list(self._running):
            process.kill()
        self._threads.shutdown()


def _ending(status: int) -> str:
    """Say how a process ended, by its exit status."""
    if status >= 0:
        return f"ended with status {status}"
    if -status == signal.SIGKILL:
        return "was killed by SIGKILL, as it is where memory is short"
    return f"was ended by {signal.Signals(-status).name}"
