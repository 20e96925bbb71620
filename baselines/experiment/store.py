"""A comparison on disk: what is compared, under which profile, and what has come of it so far.

    FOLDER/                      of one command, and named by what it asks for
        reference.json           the profile
        lock                     who works on it
        30s/                     of one budget
            comparison.json      what is asked for
            records/             what is to be sent to MLflow
            constant-seed-0/     of one training
                events.jsonl     what it tells, a line each; the last is how it has ended
                measured.json    its operations as they ran here, for `python -m timing map`
                step-*.pt        its latest checkpoints, until it has
                model-constant/  a method's model, of the first seed
        30s-trial-0/             of a trial of tuning, like a budget's
        30s-trials.json          all that was tried

Events are appended and every other file is replaced as a whole, so that a process can be killed at
any moment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from baselines.experiment.comparison import Comparison
from baselines.experiment.manifest import MANIFEST, REFERENCE, FolderError, Manifest
from baselines.experiment.plan import Plan, Task, tasks
from baselines.external import digest_of
from baselines.training.checkpoint import StorageError, write_atomically
from baselines.training.events import EVENTS, fold, read_events
from baselines.training.results import TrainingResult
from timing import Profile, ProfileError


def root_of(parent: Path, plans: Sequence[Plan], *more: str) -> Path:
    """Return the folder of the command that asks for these plans, the same each time.

    Args:
        parent: of all comparisons.
        plans: one a budget.
        more: whatever else the results depend on, such as the digest of a given profile.
    """
    asked = [*(Manifest.of(plan).fingerprint for plan in plans), *more]
    digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()
    return parent / f"{plans[0].workload.name}-{digest[:12]}"


def write_or_verify(folder: Path, plan: Plan) -> Manifest:
    """Write down what a folder is for, or read it where that was done.

    Raises:
        FolderError: it is there for something else, or damaged.
        StorageError: it cannot be written.
    """
    wanted = Manifest.of(plan)
    if not (folder / MANIFEST).exists():
        _make(folder)
        write_atomically(folder / MANIFEST, wanted.model_dump_json(indent=2).encode())
    found = Manifest.read(folder)
    if found.fingerprint != wanted.fingerprint:
        raise FolderError(f"{folder} holds another comparison than this one: use another folder")
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error


def refuse_changed(files: Mapping[str, str]) -> None:
    """Refuse files of the user's own that no longer have these texts, given by their SHA-256.

    Raises:
        FolderError: one has another, or is gone.
    """
    for name, digest in files.items():
        if digest_of(Path(name), FolderError) != digest:
            raise FolderError(
                f"{name} has changed since the comparison began: put it back, or give the same "
                "command again, which begins another comparison"
            )


def write_profile(root: Path, profile: Profile) -> None:
    """Keep the profile of a command's comparisons."""
    _make(root)
    write_atomically(root / REFERENCE, profile.model_dump_json(indent=2).encode())


def read_profile(root: Path) -> Profile | None:
    """Return the profile of the comparisons in a folder; None before there is one.

    Raises:
        FolderError: it is damaged.
    """
    path = root / REFERENCE
    try:
        return Profile.read(path) if path.exists() else None
    except ProfileError as error:
        raise FolderError(
            f"the profile of the comparisons in {root} is damaged: {error}. Put it back as it was, "
            f"or remove {root} to start anew"
        ) from error


def budget_folder(root: Path, plan: Plan) -> Path:
    """Return the folder of a plan's trainings."""
    return root / f"{plan.budget.seconds:g}s"


def task_folder(folder: Path, task: Task) -> Path:
    """Return the folder of a training."""
    # The methods of a file of the user's own are called by its path.
    first = re.sub(r"[^\w.-]", "_", task.methods[0])
    return folder / f"{first}-seed-{task.seed}"


def read_outcome(folder: Path, task: Task) -> TrainingResult | None:
    """Return what came of a training, also of one that failed; None if it is on its way.

    Raises:
        FolderError: its events are damaged.
    """
    with damage_told(task_folder(folder, task)) as path:
        result = fold(read_events(path))
        found = [(run.method, run.seed) for run in result.runs] if result else []
        if result and found != [(method, task.seed) for method in task.methods]:
            raise ValueError(f"they are of {found}")
        return result


@contextmanager
def damage_told(path: Path) -> Iterator[Path]:
    """Say of a training's folder that its events are damaged, where the block finds that."""
    try:
        yield path
    except ValueError as error:
        raise FolderError(
            f"{path / EVENTS} is damaged ({error}): remove {path} to train it again"
        ) from error


def read_result(folder: Path, task: Task) -> TrainingResult | None:
    """Return the result of a training; None if it has not ended, or was cut off by an error.

    Raises:
        FolderError: its events are damaged.
    """
    result = read_outcome(folder, task)
    return result if result and result.error is None else None


def check_kept(folder: Path, id_: str, comparison: Comparison) -> None:
    """Refuse a folder that has lost what was written there while the comparison ran.

    Args:
        folder: of the comparison.
        id_: of its manifest.
        comparison: as it has ended.

    Raises:
        FolderError: its manifest or a training's events are not there.
    """
    logs = [task_folder(folder, task) / EVENTS for task in tasks(comparison.plan)]
    lost = [path for path in logs if not path.exists()]
    with suppress(FolderError):
        if Manifest.read(folder).id == id_ and not lost:
            return
    raise FolderError(
        f"{folder} was removed in whole or in part while the comparison ran "
        f"({lost[0] if lost else folder / MANIFEST} is gone): the same command trains again "
        "what is missing there"
    )
