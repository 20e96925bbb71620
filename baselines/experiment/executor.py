"""Run the trainings of a comparison in parallel, each in a process of its own.

Each is told a folder and the number of a task of the comparison in it, writes points and result
there, and this process reads them. So whatever can start a process, here or on a machine that
shares the folder, can run a training, and any of them can be killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import torch

from baselines.experiment.comparison import (
    Comparison,
    Listener,
    Plan,
    Task,
    check,
    tasks,
)
from baselines.experiment.engine import Engine, Job, last_line
from baselines.experiment.resume import tell
from baselines.experiment.store import read_result, task_folder, write_or_verify
from baselines.experiment.worker import POINTS, model_file, work
from baselines.methods.method import Method
from baselines.training.results import Point, Run, TrainingResult
from timing import Profile
from timing.secrets import hide

SECONDS_BETWEEN_LOOKS = 0.5


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
    """Do as `resume` does, with up to `jobs` trainings at a time, each in a process of its own.

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
    files = write_or_verify(folder, plan).files_sha256
    ended: dict[Task, TrainingResult] = {}
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

    def end(self) -> TrainingResult:
        """Return its result, or a failure in its place."""
        self.look()
        try:
            self.job.result()
            found = read_result(self.folder, self.task)
            result = found or self._failed(f"its process left no result in {self.folder}")
        # Whatever ended a process, the others go on.
        except Exception as error:
            result = self._failed(hide(last_line(str(error) or type(error).__name__)))
        for run in result.runs:
            # The file may come later than the result, over a network.
            for point in run.points:
                self._tell(run.method, point)
        self._tell_of_models()
        self._listener.training_ended(result)
        return result

    def _failed(self, error: str) -> TrainingResult:
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
        return TrainingResult(tuple(runs), 0.0, 0.0, 0.0, error)

    def _tell_of_models(self) -> None:
        for name in self.task.methods:
            path = task_folder(self.folder, self.task) / model_file(name)
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
