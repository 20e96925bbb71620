"""Trainings side by side, here or by submitit, give the very table of one after another."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from baselines.experiment.cluster import Cluster
from baselines.experiment.comparison import compare
from baselines.experiment.executor import run_parallel
from baselines.experiment.lock import Lock
from baselines.experiment.plan import tasks
from baselines.experiment.processes import Processes
from baselines.experiment.store import task_folder, write_profile
from baselines.training.checkpoint import StorageError
from baselines.training.events import Ended, Evaluated, Event, Failed, ModelExported
from baselines.training.exported_model import GRAPH
from tests.support import warm_python
from tests.support.kept_comparison import PROFILE, plan_of, results

METHODS = ("constant", "lawa", "decayed")
PLAN = plan_of(budget=1.5, seeds=2, methods=METHODS)
# The machine that CI runs on need not have as many processors as a comparison has jobs.
JOBS = 2


@pytest.fixture(scope="module")
def one_after_another() -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = results(compare(PLAN, PROFILE))
    torch.set_num_threads(threads)
    return done


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Told:
    """What a comparison tells, in short."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, int]] = []
        self.models: dict[tuple[str, int], str | None] = {}
        self.failures: dict[tuple[str, int], str | None] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Evaluated():
                self.points.append((event.method, event.seed, event.point.step))
            case ModelExported():
                self.models[event.method, event.seed] = event.folder
            case Ended():
                self.failures |= {(run.method, event.seed): run.failure for run in event.runs}
            case Failed():
                self.failures |= {(name, event.seed): event.reason for name in event.methods}


def folder_in(root: Path, budget: str = "1.5s") -> Path:
    write_profile(root, PROFILE)
    return root / budget


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_side_by_side_is_as_one_after_another(tmp_path: Path, one_after_another: str) -> None:
    told = Told()
    folder = folder_in(tmp_path)
    with Processes() as engine:
        done = run_parallel(
            PLAN, PROFILE, folder, told, engine=engine, jobs=JOBS, export_models=True
        )
    assert results(done) == one_after_another
    # Every point is told, and once, and the models of the first seed.
    points = [(run.method, run.seed, p.step) for run in done.runs for p in run.points]
    assert sorted(told.points) == sorted(points)
    assert told.models.keys() == {("constant", 0), ("lawa", 0), ("decayed", 0)}
    # They are in the weights they report, and those of an average are others.
    for task, method in ((0, "lawa"), (1, "decayed")):
        model = told.models[method, 0]
        assert model
        path = task_folder(folder, tasks(PLAN)[task]) / model / GRAPH
        exported = torch.export.load(path).module()
        reported = PLAN.workload.evaluate(OnlyForward(exported))
        assert reported == pytest.approx(done.of(method)[0].final, rel=1e-5)


class OnlyForward(torch.nn.Module):
    """A model that is in evaluation mode already, and cannot be told to be."""

    def __init__(self, exported: torch.nn.Module) -> None:
        super().__init__()
        self.exported = [exported]
        self.place = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.exported[0](x)


def cluster_in(folder: Path) -> Cluster:
    pytest.importorskip("submitit", reason="needs the extra: pip install 'lawa-opt[cluster]'")
    return Cluster(folder / "cluster", "local", {"timeout_min": 5})


@pytest.mark.slow
def test_with_submitit_too(tmp_path: Path) -> None:
    # Each training of it is a Python that begins from nothing.
    plan = plan_of(budget=0.4, seeds=1, methods=METHODS)
    folder = folder_in(tmp_path, "0.4s")
    with cluster_in(tmp_path) as engine:
        done = run_parallel(plan, PROFILE, folder, Told(), engine=engine, jobs=JOBS)
    assert results(done) == results(compare(plan, PROFILE))
    # Who can write beside the pickles can run code.
    (own,) = (tmp_path / "cluster").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (own.parent, own)] == [0o700, 0o700]


def test_where_it_cannot_be_kept_from_others_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "cluster").touch()
    with pytest.raises(StorageError, match="cluster cannot be made for you alone: File exists"):
        cluster_in(tmp_path).__enter__()


def test_submitit_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra: pip install 'lawa-opt[cluster]'")
    with pytest.raises(ValueError, match="submitit refuses cluster 'pigeons'"):
        Cluster(tmp_path, "pigeons", {})
    with pytest.raises(ValueError, match=r"submitit refuses .*timeout_hours"):
        Cluster(tmp_path, "local", {"timeout_hours": 1})


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_killed_training_fails_alone_and_goes_on_the_next_time(
    tmp_path: Path, one_after_another: str
) -> None:
    killed: list[int] = []

    class Kills(Told):
        def __call__(self, event):
            super().__call__(event)
            here = isinstance(event, Evaluated) and event.method == "decayed"
            if here and event.seed == 0 and not killed:
                own = (tmp_path / "1.5s" / "decayed-seed-0" / "lock").read_text()
                killed.append(int(own.split()[1]))
                os.kill(killed[0], signal.SIGKILL)

    told = Kills()
    with Processes() as engine:
        done = run_parallel(PLAN, PROFILE, folder_in(tmp_path), told, engine=engine, jobs=JOBS)
    if not killed:
        pytest.skip("the training had ended before it could be killed")
    failures = {name: reason for name, reason in told.failures.items() if reason}
    if failures:
        assert failures.keys() == {("decayed", 0)}
        assert "its process was killed by SIGKILL" in failures["decayed", 0]
        assert [run.failure for run in done.of("decayed")][1] is None
    with Processes() as engine:
        again = run_parallel(PLAN, PROFILE, folder_in(tmp_path), Told(), engine=engine, jobs=JOBS)
    assert results(again) == one_after_another


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    starter = subprocess.Popen(
        [warm_python.executable(), "-m", __name__, str(folder)],
        cwd=Path(__file__).parent.parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert starter.stderr
    lock = folder / "constant-seed-0" / "lock"
    while not (lock.exists() and lock.read_text()):
        assert starter.poll() is None, starter.stderr.read()
        time.sleep(0.05)
    starter.kill()
    starter.communicate()
    # Entering waits for the orphan to go; it would train on for seconds otherwise.
    with Lock(lock.parent, wait_seconds=10):
        pass


def test_a_workload_made_by_hand_is_refused(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, workload=dataclasses.replace(PLAN.workload, source=None))
    with Processes() as engine, pytest.raises(ValueError, match=r"get it from baselines.workloads"):
        run_parallel(plan, PROFILE, folder_in(tmp_path), Told(), engine=engine, jobs=JOBS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "submitit"])
def test_a_task_whose_workload_is_gone_fails_with_its_reason(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "processes":
        request.getfixturevalue("warm")
    source = (str(tmp_path / "gone.py"), None)
    plan = plan_of(budget=1.5, seeds=1, methods=("constant", "lawa"))
    plan = dataclasses.replace(plan, workload=dataclasses.replace(plan.workload, source=source))
    told = Told()
    with Processes() if kind == "processes" else cluster_in(tmp_path) as engine:
        run_parallel(plan, PROFILE, folder_in(tmp_path), told, engine=engine, jobs=JOBS)
    assert len(told.failures) == 2
    assert all("gone.py: No such file" in str(reason) for reason in told.failures.values())
    assert threading.active_count() < 20


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_where_no_process_can_be_started_that_is_the_reason(tmp_path: Path) -> None:
    class Refuses(Processes):
        def submit(self, *_):
            raise OSError("no more jobs\ntry later")

    told = Told()
    with Refuses() as engine:
        done = run_parallel(PLAN, PROFILE, folder_in(tmp_path), told, engine=engine, jobs=JOBS)
    assert set(told.failures.values()) == {"try later"}
    assert str(done.failure).startswith("every run failed under 1.5 s: constant, seed 0: try later")


if __name__ == "__main__":
    torch.set_num_threads(1)
    long = plan_of(budget=60.0, seeds=1, methods=("constant",))
    with Processes() as own_engine:
        run_parallel(long, PROFILE, Path(sys.argv[1]), engine=own_engine, jobs=1)
