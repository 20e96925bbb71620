"""Run the trainings of a comparison in parallel, each in a process of its own.

Each is told a folder and the number of a task of the comparison in it, logs its events there, and
this process reads them. So whatever can start a process, here or on a machine that shares the
folder, can run a training, and any of them can be killed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from baselines.experiment.comparison import Comparison
from baselines.experiment.engine import Engine, Job, last_line
from baselines.experiment.plan import Plan, Task, check, tasks
from baselines.experiment.resume import replay
from baselines.experiment.store import read_outcome, read_result, task_folder, write_or_verify
from baselines.experiment.worker import work
from baselines.training.events import (
    Ended,
    Event,
    EventLog,
    EventReader,
    Failed,
    OnEvent,
    Started,
    ignore,
)
from baselines.training.results import TrainingResult
from timing import Profile

SECONDS_BETWEEN_LOOKS = 0.5


def run_parallel(
    plan: Plan,
    profile: Profile,
    folder: Path,
    on_event: OnEvent = ignore,
    *,
    engine: Engine,
    jobs: int,
    export_models: bool = False,
) -> Comparison:
    """Do as `resume` does, with up to `jobs` trainings at a time, each in a process of its own.

    Reference system time is the same whatever runs beside; measured time is not.

    Args:
        plan: of a workload that another process can load.
        profile: of the reference machine; it is kept in the folder above already.
        folder: of this plan under this profile.
        on_event: called with all that is logged.
        engine: starts the processes.
        jobs: at a time.
        export_models: whether the models of the first seed are written there too.

    Raises:
        ValueError: as `resume` does, or the workload was not made by `baselines.workloads.load`.
        StorageError: what ended a process cannot be logged.
    """
    check(plan, profile)
    if plan.workload.source is None:
        raise ValueError(
            f"workload {plan.workload.name} cannot be loaded in another process: get it from "
            "baselines.workloads.load"
        )
    files = write_or_verify(folder, plan).files_sha256
    shares = {method.name: method.share for method in plan.methods}
    run = partial(work, export_models=export_models)
    ended: dict[Task, TrainingResult] = {}
    waiting: list[tuple[int, Task]] = []
    for index, task in enumerate(tasks(plan)):
        if done := read_result(folder, task):
            replay(folder, task, on_event)
            ended[task] = done
        else:
            waiting.append((index, task))
    running: list[_Running] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            index, task = waiting.pop(0)
            running.append(_Running(folder, task, on_event))
            try:
                running[-1].job = engine.submit(run, str(folder), index, files)
            # As of a cluster that takes no more jobs; the others go on.
            except Exception as error:
                refused = Future[None]()
                refused.set_exception(error)
                running[-1].job = refused
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for one in list(running):
            if one.job.done():
                running.remove(one)
                ended[one.task] = one.end(shares)
            else:
                with suppress(ValueError):
                    one.look()
    return Comparison(plan, profile, tuple(ended[task] for task in tasks(plan)))


class _Running:
    """A task on its way, followed by what its process logs."""

    job: Job

    def __init__(self, folder: Path, task: Task, on_event: OnEvent) -> None:
        self.task = task
        self._folder, self._own = folder, task_folder(folder, task)
        self._on_event = on_event
        self._has_started = self._is_over = False
        self._reader = EventReader(self._own)
        # What an earlier process has told is told again by this one.
        self._reader.read()

    def look(self) -> None:
        """Tell of the events that have come; raises ValueError for a damaged one."""
        for event in self._reader.read():
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._has_started |= isinstance(event, Started)
        self._is_over |= isinstance(event, Ended | Failed)
        self._on_event(event)

    def end(self, shares: Mapping[str, float]) -> TrainingResult:
        """Return its result; a process that left without one has failed, with the reason."""
        reason = f"its process left no result in {self._folder}"
        try:
            self.job.result()
        # Whatever ended a process, the others go on.
        except Exception as error:
            reason = last_line(str(error) or type(error).__name__)
        with suppress(ValueError):
            self.look()
        if not self._is_over:
            names, seed = self.task.methods, self.task.seed
            with EventLog(self._own) as log:
                if not self._has_started:
                    log.append(Started(seed=seed, shares={name: shares[name] for name in names}))
                log.append(Failed(seed=seed, methods=names, reason=reason))
            self.look()
        result = read_outcome(self._folder, self.task)
        assert result is not None
        return result
