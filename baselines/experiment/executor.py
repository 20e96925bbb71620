"""Carries out the trainings of a comparison side by side: on this machine, or over a cluster.

Each is a process of its own, which is told a folder and the number of a task of the comparison in
it: `python -m baselines.experiment.executor FOLDER TASK`. It writes points and result there, and
this process reads them. So whatever can start a process, here or on a machine that shares the
folder, can carry out a training, and any of them can be killed.

A folder may come from anywhere. So of the Python files that it names a process runs those alone
that its own command line names (`--may-run FILE SHA256`), and only with this very text: the process
that starts it names those of the user's command. Under submitit the function and its arguments are
pickles in the comparison's folder `cluster`. Who can write there can run code as you, so it is made
for you alone (mode 0700).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from baselines.experiment.comparison import (
    Comparison,
    Listener,
    Plan,
    Silent,
    Task,
    check,
    run_training,
    tasks,
)
from baselines.experiment.lock import Lock
from baselines.experiment.resume import tell
from baselines.experiment.store import (
    Description,
    FolderError,
    describe,
    read_profile,
    read_result,
    refuse_changed,
    task_folder,
    write_result,
)
from baselines.methods.method import Method, find
from baselines.training.checkpoint import (
    SECONDS_BETWEEN,
    Checkpoints,
    StorageError,
    write_atomically,
)
from baselines.training.results import Point, Run, Trajectory
from baselines.workloads import load
from timing import Profile
from timing.calibration.worker import exit_when_parent_dies

# An extra: the cluster's.
if TYPE_CHECKING:
    import submitit

# What carries out a task: `work`.
Work = Callable[[str, int, Mapping[str, str]], None]


POINTS = "points.jsonl"
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_QUEUES = 10
# As squeue has them. What is suspended or held goes on.
SLURM_ENDINGS = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    "TIMEOUT",
)
# A process whose starter was killed ends within this time, and then frees its training.
SECONDS_FOR_ANOTHER = 30.0


class Job(Protocol):
    """A process on its way, as `concurrent.futures.Future` and `submitit.Job` have it."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""

    def result(self) -> object:
        """Raises what it ended with."""


class Engine(Protocol):
    """Starts processes."""

    def submit(self, work: Work, folder: str, index: int, files: dict[str, str], /) -> Job:
        """Carry out the task with this number of the comparison in this folder.

        `files` are those of the user's own that may be run, and the SHA-256 of their texts.
        """

    def __enter__(self) -> Engine:
        """It is a context manager, and leaves no process behind."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None:
        """End what is left."""


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
        """Start the process that carries out this task."""
        may_run = [word for file in files.items() for word in ("--may-run", *file)]
        command = [
            sys.executable,
            "-m",
            "baselines.experiment.executor",
            *may_run,
            "--",
            folder,
            str(index),
        ]
        return self._threads.submit(self._carry_out, command)

    def _carry_out(self, command: list[str]) -> None:
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
            raise RuntimeError(f"its process {_ending(status)}{said and ': '}{_last_line(said)}")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        for process in list(self._running):
            process.kill()
        self._threads.shutdown()


def _ending(status: int) -> str:
    """How a process ended, from its exit status."""
    if status >= 0:
        return f"ended with status {status}"
    if -status == signal.SIGKILL:
        return "was killed by SIGKILL, as it is where memory is short"
    return f"was ended by {signal.Signals(-status).name}"


def _last_line(said: str) -> str:
    """The last line of what was said, if anything: of a traceback, what was raised."""
    return (said.strip().splitlines() or [""])[-1]


class Cluster:
    """An engine over a cluster, by submitit: SLURM, or its own processes on this machine.

    Args:
        folder: of its logs and pickles, shared by all machines. It is made with mode 0700: who can
            write there can run code as you.
        kind: "slurm" or "local".
        options: of submitit, such as `slurm_partition` and `timeout_min`.

    Raises:
        ValueError: submitit is not installed, or does not know the kind or an option.
        StorageError: on entering, the folder cannot be made so.
    """

    def __init__(self, folder: Path, kind: str, options: Mapping[str, str | int]) -> None:
        self._folder, self._kind, self._options = folder, kind, options
        # What is refused leaves nothing behind.
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self._executor = self._executor_in(Path(scratch))
            except ModuleNotFoundError as error:
                raise ValueError(
                    'a cluster is reached through submitit: pip install "lawa-opt[cluster]"'
                ) from error
            except (RuntimeError, ValueError, NameError, TypeError) as error:
                raise ValueError(
                    f"submitit refuses cluster {kind!r} with {options}: {error}"
                ) from error
        _watch_the_queue()
        self._jobs: list[submitit.Job[None]] = []

    def _executor_in(self, folder: Path) -> submitit.AutoExecutor:
        import submitit

        executor = submitit.AutoExecutor(folder, cluster=self._kind)
        executor.update_parameters(**self._options)
        return executor

    def submit(self, work: Work, folder: str, index: int, files: dict[str, str], /) -> Job:
        """Queue the task."""
        self._jobs.append(self._executor.submit(work, folder, index, files))
        return _ClusterJob(self._jobs[-1])

    def __enter__(self) -> Cluster:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It may have been there.
            self._folder.chmod(0o700)
            # One of its own for each command: what another has left there is never unpickled.
            self._executor = self._executor_in(
                Path(tempfile.mkdtemp(prefix="command-", dir=self._folder))
            )
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot be made for you alone: {error.strerror}"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)
        # A job of submitit that is left until the interpreter ends raises then.
        self._jobs.clear()


class _ClusterJob:
    """A job of submitit, whose errors say in their last line what was wrong."""

    def __init__(self, job: submitit.Job[None]) -> None:
        self._job = job

    def done(self) -> bool:
        return self._job.done()

    def result(self) -> None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        job = self._job
        try:
            job.result()
        except FailedJobError as error:
            # A traceback, and below a rule where the logs are.
            trace = str(error).rpartition("\n-----")[0]
            raise RuntimeError(f"{_last_line(trace)} (log: {job.paths.stderr})") from error
        except UncompletedJobError as error:
            raise RuntimeError(
                f"its job {job.job_id} left no result (state {job.state}, log: {job.paths.stderr})"
            ) from error


def _watch_the_queue() -> None:
    """Let submitit learn from SLURM's queue which jobs have ended.

    It asks the accounting, which many clusters do not keep: there it would wait for ever for a job
    that was cancelled.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str]:
            whose = f"--user={os.getuid()}"
            return ["squeue", whose, "--states=all", "--noheader", "--format=%A %T"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.split(maxsplit=1) for line in text.splitlines())
            # After some minutes SLURM forgets a job that has ended.
            found = {job: states.get(job, "GONE").strip() for job in self._registered}
            ended = {*SLURM_ENDINGS, "GONE"}
            return {
                job: {"State": state if state in ended else "RUNNING"}
                for job, state in found.items()
            }

    SlurmJob.watcher = Queue(delay_s=SECONDS_BETWEEN_QUEUES)


class _Writer(Silent):
    """A listener in the process of a task: writes points down for the one that reads them."""

    def __init__(self, folder: Path, seed_with_models: int) -> None:
        self._folder = folder
        self._seed = seed_with_models
        # From the beginning: those before a checkpoint are told again.
        self._file = (folder / POINTS).open("w")

    def point(self, method: str, seed: int, point: Point) -> None:  # noqa: ARG002
        self._file.write(json.dumps({"method": method, **dataclasses.asdict(point)}) + "\n")
        self._file.flush()

    def ended(self, method: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
        if seed == self._seed:
            buffer = io.BytesIO()
            torch.save({"model": model.state_dict(), "inputs": inputs}, buffer)
            write_atomically(self._folder / _model_file(method), buffer.getvalue())

    def trajectory_ended(self, trajectory: Trajectory) -> None:  # noqa: ARG002
        self._file.close()


def _model_file(method: str) -> str:
    return f"model-{Path(method).stem}.pt"


def work(folder: str, index: int, files: Mapping[str, str]) -> None:
    """Carry out a task, or go on with it: what runs in the process of a job.

    Args:
        folder: of a comparison, beside that of its profile.
        index: number of the task.
        files: of the user's own that may be run, and the SHA-256 of their texts.

    Raises:
        FolderError: the comparison names a file that may not be run, or one of another text.
        LockedError: another process is at this very task.
        StorageError: the disk takes no more.
        CheckpointError: all its checkpoints are damaged.
    """
    path = Path(folder)
    description = Description.read(path)
    _refuse_files(path, description, files)
    torch.set_num_threads(description.threads)
    if description.source is None:
        raise ValueError(f"workload {description.workload} cannot be loaded in another process")
    name, data = description.source
    plan = description.plan(load(name, None if data is None else Path(data)))
    # What was found here may be another than what was asked for.
    describe(path, plan)
    profile = read_profile(path.parent)
    if profile is None:
        raise FolderError(f"{path.parent} has no profile")
    task = tasks(plan)[index]
    own = task_folder(path, task)
    with Lock(own, SECONDS_FOR_ANOTHER):
        if read_result(path, task) is None:
            checkpoints = Checkpoints(own, SECONDS_BETWEEN)
            listener = _Writer(own, plan.seeds[0])
            methods = {name: find(name) for name in task.methods}
            trajectory = run_training(plan, task, methods, profile, listener, checkpoints)
            write_result(path, task, trajectory)
            if trajectory.error:
                raise RuntimeError(trajectory.error)


def _refuse_files(folder: Path, description: Description, files: Mapping[str, str]) -> None:
    """Refuse to run what a folder names, and those who started this process did not."""
    for name, digest in description.files_sha256.items():
        if files.get(name) != digest:
            raise FolderError(
                f"{folder} names the file {name}, and the command that started this process did "
                "not, or with another text: nothing of it is run"
            )
    refuse_changed(description.files_sha256)


class _Reader:
    """Follows a task by what its process writes."""

    def __init__(
        self,
        plan: Plan,
        task: Task,
        methods: Mapping[str, Method],
        folder: Path,
        job: Job,
        listener: Listener,
        warn: Callable[[str], None],
    ) -> None:
        self.plan, self.task, self.folder, self.job = plan, task, folder, job
        self._methods, self._listener, self._warn = methods, listener, warn
        self._points: dict[str, dict[int, Point]] = {name: {} for name in task.methods}
        for name in task.methods:
            listener.run_started(name, task.seed)

    def look(self) -> None:
        """Tell of points that have come."""
        for method, point in self._written():
            self._tell(method, point)

    def _tell(self, method: str, point: Point) -> None:
        known = self._points[method]
        if point.step not in known:
            known[point.step] = point
            self._listener.point(method, self.task.seed, point)

    def _written(self) -> Iterator[tuple[str, Point]]:
        path = task_folder(self.folder, self.task) / POINTS
        for line in path.read_bytes().splitlines() if path.exists() else ():
            # The last line may be half written. All points come again with the result.
            with suppress(ValueError, TypeError, LookupError, AttributeError):
                fields = json.loads(line)
                method = fields.pop("method")
                if method in self._points:
                    yield method, Point(**fields)

    def end(self) -> Trajectory:
        """What came of it."""
        self.look()
        try:
            self.job.result()
            found = read_result(self.folder, self.task)
            trajectory = found or self._failed(f"its process left no result in {self.folder}")
        # Whatever ended a process, the others go on.
        except Exception as error:
            trajectory = self._failed(_last_line(str(error) or type(error).__name__))
        for run in trajectory.runs:
            # The file may come later than the result, over a network.
            for point in run.points:
                self._tell(run.method, point)
        self._tell_of_models()
        self._listener.trajectory_ended(trajectory)
        return trajectory

    def _failed(self, error: str) -> Trajectory:
        runs = (
            Run(
                method=name,
                seed=self.task.seed,
                points=tuple(self._points[name].values()),
                account=(),
                totals={},
                step_seconds=0.0,
                failure=error,
                share=self._methods[name].share,
            )
            for name in self.task.methods
        )
        return Trajectory(tuple(runs), 0.0, 0.0, 0.0, error)

    def _tell_of_models(self) -> None:
        for name in self.task.methods:
            path = task_folder(self.folder, self.task) / _model_file(name)
            if path.exists():
                model = self.plan.workload.make_model()
                try:
                    saved = torch.load(path, weights_only=True, map_location="cpu")
                    model.load_state_dict(saved["model"])
                # No result depends on it.
                except Exception as error:
                    self._warn(f"the model in {path} cannot be read: {type(error).__name__}")
                    continue
                self._listener.ended(name, self.task.seed, model, saved["inputs"])
                path.unlink()


def run_parallel(
    plan: Plan,
    profile: Profile,
    listener: Listener,
    folder: Path,
    engine: Engine,
    jobs: int,
    *,
    warn: Callable[[str], None] = print,
) -> Comparison:
    """As `resume`, with up to `jobs` trainings at a time, each in a process of its own.

    Reference system time is the same whatever runs beside; measured time is not.

    Args:
        plan: of a workload that another process can load.
        profile: of the reference machine; it is kept in the folder above already.
        listener: told of everything from the beginning.
        folder: of this plan under this profile.
        engine: starts the processes.
        jobs: at a time.
        warn: told, in a line, of what could not be read and is not missed.

    Raises:
        ValueError: as `resume` does, or the workload was not made by `baselines.workloads.load`.
    """
    methods = check(plan, profile)
    if plan.workload.source is None:
        raise ValueError(
            f"workload {plan.workload.name} cannot be loaded in another process: get it from "
            "baselines.workloads.load"
        )
    files = describe(folder, plan).files_sha256
    ended: dict[Task, Trajectory] = {}
    waiting: list[tuple[int, Task]] = []
    for index, task in enumerate(tasks(plan)):
        if done := read_result(folder, task):
            tell(done, listener)
            ended[task] = done
        else:
            waiting.append((index, task))
    running: list[_Reader] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            index, task = waiting.pop(0)
            try:
                job = engine.submit(work, str(folder), index, files)
            # As of a cluster that takes no more jobs; the others go on.
            except Exception as error:
                job = Future[None]()
                job.set_exception(error)
            running.append(_Reader(plan, task, methods, folder, job, listener, warn))
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for reader in list(running):
            if reader.job.done():
                running.remove(reader)
                ended[reader.task] = reader.end()
            else:
                reader.look()
    return Comparison(plan, profile, tuple(ended[task] for task in tasks(plan)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m baselines.experiment.executor", description=work.__doc__
    )
    parser.add_argument("folder")
    parser.add_argument("index", type=int)
    parser.add_argument(
        "--may-run",
        nargs=2,
        metavar=("FILE", "SHA256"),
        action="append",
        default=[],
        help="a file of the user's own that may be run, and the digest of its text",
    )
    arguments = parser.parse_args()
    exit_when_parent_dies()
    work(arguments.folder, arguments.index, dict(arguments.may_run))
