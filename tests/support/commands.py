"""Commands run as a user runs them, and a profile that is quick to measure."""

import os
import subprocess
import sys
from pathlib import Path

from baselines.experiment.calibration import calibration_target
from tests.support.stores import empty_store
from timing import Profile, calibrate, this_machine, this_software


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, where MLflow has a store already."""
    empty_store(folder)
    return subprocess.run(
        [sys.executable, "-m", "baselines", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


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
