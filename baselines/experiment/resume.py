"""Run a comparison so that it can be killed at any moment, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from baselines.experiment.comparison import Comparison, run_training
from baselines.experiment.plan import Plan, Task, check, tasks
from baselines.experiment.store import read_result, task_folder, write_or_verify
from baselines.training import distributed
from baselines.training.checkpoint import SECONDS_BETWEEN, Checkpoints
from baselines.training.events import OnEvent, ignore, latest_attempt, read_events
from baselines.training.results import TrainingResult
from timing import Profile


def resume(
    plan: Plan,
    profile: Profile,
    folder: Path,
    on_event: OnEvent = ignore,
    *,
    export_models: bool = False,
    checkpoint_seconds: float = SECONDS_BETWEEN,
    warn: Callable[[str], None] = print,
) -> Comparison:
    """Compare, with all that is done kept in a folder; what is there is not done again.

    A training that was cut off goes on from its latest checkpoint, and ends with the very result
    of one that was not. Under `torchrun` the folder must be the same for all ranks.

    Args:
        plan: what is compared.
        profile: of the reference machine.
        folder: of this plan under this profile.
        on_event: called with all that is logged, so also of a training that had ended before.
        export_models: whether the models of the first seed are written there too.
        checkpoint_seconds: least wall time between two checkpoints.
        warn: told, in a line, of a checkpoint that cannot be read.

    Raises:
        ValueError: as `check` does, before anything is run; or the folder is of another plan.
        StorageError: the disk takes no more. All that was written before is whole.
        CheckpointError: all checkpoints of a training are damaged.
    """
    check(plan, profile)
    first = distributed.rank() == 0
    if first:
        write_or_verify(folder, plan)

    def one(task: Task) -> TrainingResult:
        done = read_result(folder, task)
        # All ranks must have looked before one of them writes.
        distributed.barrier()
        if done:
            replay(folder, task, on_event)
            return done
        own = task_folder(folder, task)
        return run_training(
            plan,
            task,
            profile,
            on_event,
            folder=own if first else None,
            checkpoints=Checkpoints(own, checkpoint_seconds, warn),
            export_models=export_models,
        )

    return Comparison(plan, profile, tuple(one(task) for task in tasks(plan)))


def replay(folder: Path, task: Task, on_event: OnEvent) -> None:
    """Tell of a training that has ended, as it told itself when it ran."""
    for event in latest_attempt(read_events(task_folder(folder, task))):
        on_event(event)
