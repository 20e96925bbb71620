"""Commands run as a user runs them, and a profile for them.

They begin in a process that has imported PyTorch and the like already: see `warm_python`. That
`python -m` finds the way by itself is for the few tests that start it so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from baselines.experiment.calibration import calibration_target
from tests.support import warm_python
from tests.support.profiles import profile_of
from tests.support.stores import empty_store


class Command:
    """A command that runs, as subprocess.Popen has it: `python -m MODULE ARGUMENTS`.

    Attributes:
        args: as `subprocess.Popen` would be given them.
        pid: of its process.
        out: the file that its standard output goes to.
        err: the file that its standard error goes to.
    """

    def __init__(
        self,
        folder: Path,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if arguments[:1] in (("compare",), ("ablate",)) and "--jobs" not in arguments:
            # How many cores are free is another number each time.
            arguments = (*arguments, "--jobs", "1")
        self.args = [warm_python.executable(), "-m", module, *arguments]
        self._said = tempfile.TemporaryDirectory(prefix="command-")
        self.out, self.err = (Path(self._said.name, name) for name in ("out", "err"))
        every = dict(os.environ if environment is None else environment)
        paths = (Path(os.devnull), self.out, self.err)
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(path.open("ab")) for path in paths]
            files = {number: file.fileno() for number, file in enumerate(opened)}
            at = warm_python.folder()
            self._process = warm_python.Process(at, self.args[1:], str(folder), every, files)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it has ended; that of a signal is below zero."""
        return self._process.poll()

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Wait for its end, and return what it has printed."""
        self._process.wait()
        out, err = self.out.read_text(), self.err.read_text()
        self._said.cleanup()
        return out, err

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return all of it."""
        said = self.communicate()
        assert self.returncode is not None
        return subprocess.CompletedProcess(self.args, self.returncode, *said)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of baselines in a folder, where MLflow has a store already."""
    empty_store(folder)
    every = {**os.environ, "COLUMNS": "200", **environment}
    return Command(folder, "baselines", *arguments, environment=every).end()


def made_up(folder: Path, workload: str, data: str | None, k: int) -> str:
    """A profile whose costs are made up: some fifty steps a second of RST, whatever they take."""
    target = calibration_target(workload, data, k=k)
    costs = {name: 0.02 if name.endswith("_step") else 0.001 for name in target.operations}
    every = {name: operation.every for name, operation in target.operations.items()}
    path = folder / "made-up.json"
    profile_of([costs], target.workload, every).write(path)
    return str(path)
