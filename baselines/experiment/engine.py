"""Say what starts the processes of trainings, here or over a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

# What runs a task: `baselines.experiment.worker.work`.
Work = Callable[[str, int, Mapping[str, str]], None]


class Job(Protocol):
    """A process on its way, as `concurrent.futures.Future` and `submitit.Job` have it."""

    def done(self) -> bool:
        """Say whether it has ended, well or not."""

    def result(self) -> object:
        """Raise what it ended with."""


class Engine(Protocol):
    """Starts processes."""

    def submit(self, work: Work, folder: str, index: int, files: dict[str, str], /) -> Job:
        """Run the task with this number of the comparison in this folder.

        `files` are those of the user's own that may be run, and the SHA-256 of their texts.
        """

    def __enter__(self) -> Engine:
        """Begin; no process is left behind at the end."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None:
        """End what is left."""


def last_line(said: str) -> str:
    """Return the last line of what was said: of a traceback, what was raised."""
    return (said.strip().splitlines() or [""])[-1]
