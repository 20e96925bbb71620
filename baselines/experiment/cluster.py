"""Start processes over a cluster, by submitit.

The function and its arguments are pickles in the comparison's folder `cluster`. Who can write there
can run code as you, so it is made for you alone (mode 0700).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.experiment.engine import Job, Work, last_line
from baselines.training.checkpoint import StorageError

# An extra: the cluster's.
if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_QUEUES = 10
# As squeue has them. What is suspended or held goes on.
SLURM_ENDINGS = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    "TIMEOUT",
)


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
            raise RuntimeError(f"{last_line(trace)} (log: {job.paths.stderr})") from error
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
