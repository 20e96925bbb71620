"""A clock that steps by hours, as one that is set right: nothing waits for it or is hurried."""

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from baselines.experiment.comparison import compare
from baselines.experiment.kept import read_comparison
from baselines.experiment.lock import Lock, LockedError
from baselines.training.checkpoint import Checkpoints
from tests.support.calibrated_file import SETUP
from tests.support.kept_comparison import PROFILE, plan_of, results
from tests.support.waiting import wait_for
from timing import Profile

# In every process of a command: as early as Python can.
STEPPING = """
import itertools, time
now, hours = time.time, itertools.cycle([0, 9, -9, 1, -30])
def stepping():
    return now() + 3600 * next(hours)
time.time = stepping
time.time_ns = lambda: round(1e9 * stepping())
"""


@pytest.fixture
def stepping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command whose clock steps whenever it is asked."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "sitecustomize.py").write_text(STEPPING)
    path = os.pathsep.join([str(folder), str(Path(__file__).parent.parent.parent)])
    return {**os.environ, "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


def command(
    folder: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_clock_of_these_tests_steps(stepping: dict[str, str]) -> None:
    script = (
        "import time; a, b, c = (time.time() for _ in range(3)); print(b > a + 9e3, c < b - 9e3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=stepping, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True\n"


def test_a_comparison_ends_with_the_very_table_and_all_is_sent(
    tmp_path: Path, stepping: dict[str, str]
) -> None:
    pytest.importorskip("mlflow")
    plan = plan_of(budget=0.6, seeds=1, methods=("constant", "lawa", "decayed"))
    PROFILE.write(tmp_path / "reference.json")
    options = "--workload digits --methods constant,lawa,decayed --seeds 1 --budget 0.6s"
    options += " --set lawa.k=3 --lr 0.05 --jobs 2 --reference reference.json"
    done = command(tmp_path, stepping, "baselines", "compare", *options.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nPublished to the experiment" in done.stdout
    (kept,) = (tmp_path / "lawa-runs").iterdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = read_comparison(kept)
    plan = dataclasses.replace(plan, evaluations=made.plan.evaluations)
    undisturbed = compare(plan, PROFILE)
    torch.set_num_threads(threads)
    assert results(made) == results(undisturbed)


def test_a_calibration_is_of_seconds_that_passed(tmp_path: Path, stepping: dict[str, str]) -> None:
    (tmp_path / "setup_of_sleeps.py").write_text(SETUP)
    options = "--processes 2 --seconds 0.4 --precision 99 --force --argument log=log --out out.json"
    target = "setup_of_sleeps.py:sleeps"
    done = command(tmp_path, stepping, "timing", "calibrate", target, *options.split())
    assert (done.returncode, done.stderr) == (0, "")
    measured = Profile.read(tmp_path / "out.json")
    # A sleep of 2 ms, and far from an hour whatever else this machine does.
    assert all(0.002 <= seconds < 60 for seconds in measured.seconds.values())
    assert all(0 < p.noise.window_seconds < 600 for p in measured.processes)


@pytest.fixture
def stepping_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now, hours = time.time, itertools.cycle([0, 9, -9, 1, -30])
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * next(hours))


@pytest.mark.usefixtures("stepping_here")
def test_checkpoints_are_made_at_their_times(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, seconds=0.1)
    for step in range(5):
        wait_for(lambda: checkpoints.due)
        checkpoints.save(step, {"step": step})
    far = Checkpoints(tmp_path, seconds=3000)
    assert not any(far.due for _ in range(10))


@pytest.mark.usefixtures("stepping_here")
def test_a_lock_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(LockedError), Lock(tmp_path, wait_seconds=0.5):
        pass
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with Lock(tmp_path):
            held.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    threading.Timer(0.6, leave.set).start()
    with Lock(tmp_path, wait_seconds=100):
        assert leave.is_set()
    holder.join()
