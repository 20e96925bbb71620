"""A comparison: all methods with all seeds, each under the same budget."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from baselines.experiment.plan import Plan, Task, check, tasks
from baselines.training.checkpoint import Checkpoints, write_atomically
from baselines.training.events import (
    Evaluated,
    Event,
    EventLog,
    ModelExported,
    OnEvent,
    Started,
    ending_of,
    fold,
    ignore,
)
from baselines.training.exported_model import export_model
from baselines.training.loop import train
from baselines.training.results import Run, TrainingResult
from timing import Profile

# What `python -m timing map` takes.
MEASURED = "measured.json"
# So many of the runs that did not end are named in a line.
_NAMED = 6


@dataclass(frozen=True)
class Comparison:
    """A plan that was run under a reference profile."""

    plan: Plan
    profile: Profile
    trainings: tuple[TrainingResult, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return all runs, seed by seed."""
        return tuple(run for result in self.trainings for run in result.runs)

    def of(self, method: str) -> list[Run]:
        """Return the runs of a method, by seed."""
        return [run for run in self.runs if run.method == method]

    @property
    def cut_off(self) -> list[Run]:
        """Return the runs whose training raised an error or was killed: nothing of them is kept."""
        return [run for each in self.trainings if each.error is not None for run in each.runs]

    @property
    def failure(self) -> str | None:
        """Say in a line why the command that asked for this has failed; None if it has not.

        A run that diverged is a result, and its method's row shows the miss. One that was cut off
        has none; and where every run failed, nothing is compared.
        """
        failed = [run for run in self.runs if run.failure]
        under = f"under {self.plan.budget.seconds:g} s"
        if len(failed) == len(self.runs):
            first = failed[0]
            return f"every run failed {under}: {first.method}, seed {first.seed}: {first.failure}"
        names = [f"{run.method}, seed {run.seed}" for run in self.cut_off]
        if not names:
            return None
        more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{len(names)} of {len(self.runs)} runs {under} did not end "
            f"({'; '.join(names[:_NAMED])}{more})"
        )


def run_training(
    plan: Plan,
    task: Task,
    profile: Profile,
    on_event: OnEvent = ignore,
    *,
    folder: Path | None = None,
    checkpoints: Checkpoints | None = None,
    export_models: bool = False,
) -> TrainingResult:
    """Train once, or go on with a training that was cut off.

    Args:
        plan: what is compared.
        task: the training of it.
        profile: of the reference machine.
        on_event: called with what is logged, from the beginning.
        folder: where its events are logged.
        checkpoints: where it is kept on its way, until it has ended.
        export_models: whether each method's model is written to the folder, of the first seed
            alone: that is large, and takes seconds.

    Raises:
        StorageError: an event or a checkpoint cannot be written.
        CheckpointError: there are checkpoints, and none can be read.
    """
    told: list[Event] = []
    methods = [plan.method(name) for name in task.methods]
    first = methods[0]
    with EventLog(folder) if folder else nullcontext() as log:

        def tell(event: Event) -> None:
            if log:
                log.append(event)
            told.append(event)
            on_event(event)

        def export(name: str, model: nn.Module, inputs: Tensor) -> None:
            if folder and export_models and task.seed == plan.seeds[0]:
                place = f"model-{re.sub(r'[^A-Za-z0-9=-]+', '-', name)}"
                reason = export_model(model, folder / place, inputs)
                where = None if reason else place
                tell(ModelExported(seed=task.seed, method=name, folder=where, reason=reason))

        shares = {method.name: method.share for method in methods}
        tell(Started(seed=task.seed, shares=shares))
        result = train(
            plan.workload,
            methods,
            task.seed,
            plan.budget_of(first),
            profile.seconds,
            plan.rate_of(first),
            plan.evaluations_of(first),
            lambda name, point: tell(Evaluated(seed=task.seed, method=name, point=point)),
            plan.policy,
            checkpoints=checkpoints,
            read_test=plan.read_test,
            on_end=export,
            folder=folder,
            free=plan.free,
            roundings=plan.roundings,
        )
        tell(ending_of(result, task.seed))
        if folder and (measurement := result.measurement):
            run = measurement.as_run(plan.signature)
            write_atomically(folder / MEASURED, run.model_dump_json(indent=2).encode())
    if result.error is None and checkpoints and folder:
        checkpoints.remove()
    # What a failed one had charged is not kept.
    return result if result.error is None else fold(told) or result


def compare(plan: Plan, profile: Profile, on_event: OnEvent = ignore) -> Comparison:
    """Train every method with every seed; nothing is kept but what is returned.

    Raises:
        ValueError: as `check` does, before anything is run.
    """
    check(plan, profile)
    trainings = [run_training(plan, task, profile, on_event) for task in tasks(plan)]
    return Comparison(plan, profile, tuple(trainings))
