"""Comparisons read from their folders, without their workloads' models and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from baselines.experiment.comparison import Comparison
from baselines.experiment.manifest import MANIFEST, REFERENCE, FolderError, Manifest
from baselines.experiment.plan import Plan, tasks
from baselines.experiment.store import (
    damage_told,
    read_outcome,
    read_profile,
    read_result,
    task_folder,
)
from baselines.training.events import EVENTS, Event, fold, read_events
from baselines.training.results import TrainingResult
from baselines.workloads.base import Workload
from timing import Profile


@dataclass(frozen=True)
class Kept:
    """A comparison as its folder has it, without its workload's model and data.

    Attributes:
        folder: of a budget.
        manifest: as it is there.
        plan: that it is of; its workload can be asked for names alone.
        profile: of the reference machine.
    """

    folder: Path
    manifest: Manifest
    plan: Plan
    profile: Profile

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Return what a budget's folder has; nothing that it names is run.

        Raises:
            FolderError: it holds no comparison, or it or its profile is damaged.
        """
        manifest = Manifest.read(folder)
        profile = read_profile(folder.parent)
        if profile is None:
            raise FolderError(f"{folder.parent} has no {REFERENCE}")
        try:
            plan = manifest.plan(_without_data(manifest))
        except FolderError:
            raise
        except ValueError as error:
            raise FolderError(f"{folder / MANIFEST} is damaged: {error}") from error
        return cls(folder, manifest, plan, profile)

    def comparison(self, *, with_failed: bool = False) -> Comparison:
        """Return the comparison, which has ended.

        Args:
            with_failed: whether a training that was cut off by an error counts as ended; the same
                command would train it again.

        Raises:
            FolderError: a training has not ended, or its events are damaged.
        """
        read = read_outcome if with_failed else read_result
        trainings = []
        for task in tasks(self.plan):
            result = read(self.folder, task)
            if result is None:
                raise FolderError(
                    f"{self.folder} has not ended: seed {task.seed} of {', '.join(task.methods)} "
                    "is missing"
                )
            with damage_told(task_folder(self.folder, task)):
                _refuse_other_readings(self.plan, result)
            trainings.append(result)
        return Comparison(self.plan, self.profile, tuple(trainings))

    def logs(self) -> list[list[Event]]:
        """Return what each training has told so far, whole where it has ended; seed by seed.

        Raises:
            FolderError: a log is damaged.
        """
        logs = []
        for path in self.folder.glob(f"*/{EVENTS}"):
            with damage_told(path.parent):
                logs.append(read_events(path.parent))
                fold(logs[-1])
        places = {seed: place for place, seed in enumerate(self.plan.seeds)}
        return sorted(filter(None, logs), key=lambda log: places.get(log[0].seed, len(places)))


def _refuse_other_readings(plan: Plan, result: TrainingResult) -> None:
    wanted = set(plan.read[1:])
    for run in result.runs:
        if found := [point.read for point in run.points if point.read.keys() != wanted]:
            read, asked = (", ".join(sorted(each)) or "float alone" for each in (found[0], wanted))
            raise ValueError(f"{run.method} was read as {read}, and {asked} is asked for")


def folders_of(folder: Path) -> list[Path]:
    """Return the folders of the budgets of a command, or the folder itself if it is of one.

    Raises:
        FolderError: it is neither.
    """
    if (folder / REFERENCE).exists():
        found = [path.parent for path in folder.glob(f"*s/{MANIFEST}")]
        return sorted(found, key=lambda path: (len(path.name), path.name))
    if not (folder / MANIFEST).exists():
        raise FolderError(f"{folder} holds no comparison: there is no {MANIFEST} in it")
    return [folder]


def read_comparison(folder: Path) -> Comparison:
    """Return a comparison that has ended, without its workload's model and data.

    Args:
        folder: of a budget, or of a command of one budget.

    Raises:
        FolderError: there is none, it or its profile is damaged, or it has not ended.
    """
    inside = folders_of(folder)
    if len(inside) != 1:
        names = ", ".join(str(path) for path in inside) or "none"
        raise FolderError(f"{folder} holds not one comparison but {names}: name one of them")
    return Kept.read(inside[0]).comparison()


def _without_data(manifest: Manifest) -> Workload:
    def absent(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(f"only the results of {manifest.workload} were read, not its data")

    return Workload(
        name=manifest.workload,
        metric=manifest.metric,
        make_model=absent,
        make_optimizer=absent,
        learning_rate=manifest.learning_rate,
        batches=absent,
        loss=absent,
        evaluate=absent,
        evaluate_test=absent,
        budget_seconds=manifest.budget_seconds,
        signature=manifest.signature,
        data=manifest.data,
        source=manifest.source,
        higher_is_better=manifest.higher_is_better,
    )
