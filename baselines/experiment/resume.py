"""Run a comparison so that it can be killed at any moment, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from baselines.experiment.comparison import (
    Comparison,
    Listener,
    Plan,
    Task,
    check,
    run_training,
    tasks,
)
from baselines.experiment.store import read_result, task_folder, write_or_verify, write_result
from baselines.training import distributed
from baselines.training.checkpoint import SECONDS_BETWEEN, Checkpoints
from baselines.training.results import TrainingResult
from timing import Profile


def resume(
    plan: Plan,
    profile: Profile,
    listener: Listener,
    folder: Path,
    *,
    checkpoint_seconds: float = SECONDS_BETWEEN,
    warn: Callable[[str], None] = print,
) -> Comparison:
    """Compare, with all that is done kept in a folder; what is there is not done again.

    A training that was cut off goes on from its latest checkpoint, and ends with the very result
    of one that was not. Under `torchrun` the folder must be the same for all ranks.

    Args:
        plan: what is compared.
        profile: of the reference machine.
        listener: told of everything from the beginning, so also of what is there already.
        folder: of this plan under this profile.
        checkpoint_seconds: least wall time between two checkpoints.
        warn: told, in a line, of a checkpoint that cannot be read.

    Raises:
        ValueError: as `check` does, before anything is run; or the folder is of another plan.
        StorageError: the disk takes no more. All that was written before is whole.
        CheckpointError: all checkpoints of a training are damaged.
    """
    methods = check(plan, profile)
    if distributed.rank() == 0:
        write_or_verify(folder, plan)

    def one(task: Task) -> TrainingResult:
        done = read_result(folder, task)
        # All ranks must have looked before one of them writes.
        distributed.barrier()
        if done:
            tell(done, listener)
            return done
        checkpoints = Checkpoints(task_folder(folder, task), checkpoint_seconds, warn)
        result = run_training(plan, task, methods, profile, listener, checkpoints)
        if distributed.rank() == 0:
            write_result(folder, task, result)
        return result

    return Comparison(plan, profile, tuple(one(task) for task in tasks(plan)))


def tell(result: TrainingResult, listener: Listener) -> None:
    """Tell of a training that has ended, as it was told of when it ran."""
    for run in result.runs:
        listener.run_started(run.method, run.seed)
    for run in result.runs:
        for point in run.points:
            listener.point(run.method, run.seed, point)
    listener.training_ended(result)
