"""Make the run of one method and seed in MLflow say what the log of its training says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from baselines.experiment.kept import Kept
from baselines.experiment.plan import Task
from baselines.experiment.store import task_folder
from baselines.tracking import said, said_of_readings
from baselines.tracking.mlflow_run import Measured, RunInMlflow
from baselines.training.events import (
    Ended,
    Evaluated,
    Event,
    ModelExported,
    end_in,
    fold,
    methods_in,
)


@dataclass
class RunEvents:
    """What the log of a training says of one of the runs that followed it."""

    kept: Kept
    method: str
    log: Sequence[Event]

    @property
    def seed(self) -> int:
        """Return the seed of the training."""
        return self.log[0].seed

    @property
    def key(self) -> str:
        """Return the tag by which it is found again."""
        return f"{self.method}/{self.seed}/{self.kept.plan.budget.seconds:g}s"

    @property
    def name(self) -> str:
        """Return its name in MLflow."""
        return f"{self.method}, seed {self.seed}"

    def measured(self) -> list[Measured]:
        """Return the metrics of its points; of what was told again the first stands."""
        points: dict[int, Measured] = {}
        for event in self.log:
            if isinstance(event, Evaluated) and event.method == self.method:
                metrics = said.point_metrics(event.point)
                step = event.point.step
                points.setdefault(step, Measured(step, event.time_milliseconds, metrics))
        return list(points.values())

    def send_to(self, run: RunInMlflow, *, is_running: bool) -> None:
        """Send all that MLflow lacks of it."""
        plan, method, seed = self.kept.plan, self.method, self.seed
        run.log_parameters(said.parameters_of_run(plan, method, seed))
        run.log_tags({"title": plan.titles[method]})
        run.log_metrics(self.measured())
        end, result = end_in(self.log), fold(self.log)
        if end is None or result is None:
            if is_running:
                run.go_on()
            else:
                run.end("KILLED", self.log[-1].time_milliseconds)
            return
        found = next(each for each in result.runs if each.method == method)
        status = "FAILED" if found.failure else "FINISHED"
        if isinstance(end, Ended):
            # Of step 0, the one from which the UI draws bars and not curves.
            at_end = said.end_metrics(found, result, self.kept.profile.joules)
            run.log_metrics([Measured(0, end.time_milliseconds, at_end)])
            run.log_tags(said_of_readings.not_finite(found))
        run.end(status, end.time_milliseconds, found.failure)
        # Last, as MLflow may keep files where they cannot be written from here.
        if isinstance(end, Ended):
            if run.lacks_file("account.json"):
                account = json.dumps({"lines": list(found.account)}, indent=2)
                run.log_file("account.json", account.encode())
            self._send_model(run)

    def _send_model(self, run: RunInMlflow) -> None:
        exported = [e for e in self.log if isinstance(e, ModelExported) and e.method == self.method]
        if not exported:
            return
        folder = exported[-1].folder
        if folder is None:
            run.log_tags({"model": f"not logged: {exported[-1].reason}"})
            return
        latest = [e.point for e in self.log if isinstance(e, Evaluated) and e.method == self.method]
        # MLflow takes no dots and colons in it, and neither has the folder.
        method = folder.removeprefix("model-")
        parts = (latest[-1].weights if latest else None), method, str(self.seed)
        name = " ".join(filter(None, parts))
        first, *_ = methods_in(self.log)
        own = task_folder(self.kept.folder, Task((first,), self.seed))
        run.log_model(name, own / folder)
