"""Commands run as a user runs them, and a profile that is quick to measure.

A command begins in a process that has imported PyTorch and the like already, forked from one that
has done nothing else: half of a small command's processor time would go there each time. That
`python -m` finds the way by itself is for the few tests that start it so.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from baselines.experiment.calibration import calibration_target
from tests.support.stores import empty_store
from timing import Profile, calibrate, this_machine, this_software

# Whatever looks for a GPU while it is imported must not begin to use it: a fork could not, then.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torch.export",
        "scipy.stats",
        "sklearn.datasets",
        "matplotlib.figure",
    ]
)


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
        self.args = [sys.executable, "-m", module, *arguments]
        self._said = tempfile.TemporaryDirectory(prefix="command-")
        self.out, self.err = (Path(self._said.name, name) for name in ("out", "err"))
        every = dict(os.environ if environment is None else environment)
        given = (str(folder), self.args, every, self.out, self.err)
        self._process = _FORKSERVER.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it has ended; that of a signal is below zero."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """Wait for its end, and return what it has printed."""
        self._process.join()
        said = tuple(path.read_text() if path.exists() else "" for path in (self.out, self.err))
        self._said.cleanup()
        return said

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return all of it."""
        said = self.communicate()
        assert self.returncode is not None
        return subprocess.CompletedProcess(self.args, self.returncode, *said)


def _run(folder: str, line: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """Become the command."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    # As `python -m` does.
    sys.path.insert(0, folder)
    sys.orig_argv = line
    _, _, module, *arguments = line
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of baselines in a folder, where MLflow has a store already."""
    empty_store(folder)
    every = {**os.environ, "COLUMNS": "200", **environment}
    return Command(folder, "baselines", *arguments, environment=every).end()


def measured_here(folder: Path, workload: str, data: str | None, k: int) -> str:
    """A profile of one process, this one: it is quick, and good enough to train under."""
    measured = calibration_target(workload, data, k=k)
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
