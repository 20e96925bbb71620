"""Commands run as a user runs them, and a profile that is quick to measure.

A command begins in a process that has imported PyTorch and the like already, forked from one that
has done nothing else: half of a small command's processor time would go there each time. That
`python -m` finds the way by itself is for the few tests that start it so.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from baselines.experiment.calibration import calibration_target
from tests.support.stores import empty_store
from timing import Profile, calibrate, this_machine, this_software

_IMPORTED = ["torch", "torch._dynamo", "scipy.stats", "sklearn.datasets", "matplotlib.figure"]
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(_IMPORTED)


class Command:
    """A command that runs: `python -m MODULE ARGUMENTS` in a folder.

    Attributes:
        pid: of its process.
    """

    def __init__(
        self, folder: Path, module: str, *arguments: str, environment: Mapping[str, str]
    ) -> None:
        self._arguments = [module, *arguments]
        with tempfile.NamedTemporaryFile(delete=False) as out:
            self._out = Path(out.name)
        with tempfile.NamedTemporaryFile(delete=False) as err:
            self._err = Path(err.name)
        self._process = _FORKSERVER.Process(
            target=_run,
            args=(str(folder), module, arguments, dict(environment), self._out, self._err),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return its exit status once it has ended."""
        return self._process.exitcode

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return what it has printed."""
        self._process.join()
        done = subprocess.CompletedProcess(
            self._arguments,
            self._process.exitcode or 0,
            self._out.read_text(),
            self._err.read_text(),
        )
        self._out.unlink()
        self._err.unlink()
        return done


def _run(
    folder: str,
    module: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    out: Path,
    err: Path,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.path[0] = folder
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of baselines in a folder, where MLflow has a store already."""
    empty_store(folder)
    every = {**os.environ, "COLUMNS": "200", **environment}
    return Command(folder, "baselines", *arguments, environment=every).end()


def measured_here(folder: Path, workload: str, data: str | None, k: int) -> str:
    """A profile of one process, this one: it is quick, and good enough to train under."""
    measured = calibration_target(workload, data, k)
    every = {name: operation.every for name, operation in measured.operations.items()}
    calibration = calibrate(measured.operations, 0.1, float("inf"))
    path = folder / "measured-here.json"
    profile = Profile(
        machine=this_machine(),
        software=this_software(),
        workload=dict(measured.workload),
        every=every,
        processes=(calibration,),
    )
    profile.write(path)
    return str(path)
