"""Run one training of a kept comparison, in a process of its own.

It logs its events in the folder, where the process that started it reads them. A folder may come
from anywhere. So of the Python files that it names this runs those alone that the process
that starts it names, and only with this very text: those of the user's command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from baselines.experiment.comparison import run_training
from baselines.experiment.lock import Lock
from baselines.experiment.manifest import FolderError, Manifest
from baselines.experiment.plan import tasks
from baselines.experiment.store import (
    read_profile,
    read_result,
    refuse_changed,
    task_folder,
    write_or_verify,
)
from baselines.training.checkpoint import SECONDS_BETWEEN, Checkpoints
from baselines.workloads import load

# A process whose starter was killed ends within this time, and then frees its training.
SECONDS_FOR_ANOTHER = 30.0


def work(folder: str, index: int, files: Mapping[str, str], *, export_models: bool = False) -> None:
    """Run a task, or resume it.

    Args:
        folder: of a comparison, beside that of its profile.
        index: number of the task.
        files: of the user's own that may be run, and the SHA-256 of their texts.
        export_models: as `resume` has it.

    Raises:
        FolderError: the comparison names a file that may not be run, or one of another text.
        LockedError: another process is at this very task.
        StorageError: the disk takes no more.
        CheckpointError: all its checkpoints are damaged.
    """
    path = Path(folder)
    manifest = Manifest.read(path)
    _refuse_files(path, manifest, files)
    torch.set_num_threads(manifest.threads)
    if manifest.source is None:
        raise ValueError(f"workload {manifest.workload} cannot be loaded in another process")
    name, data = manifest.source
    workload = load(name, None if data is None else Path(data))
    plan = manifest.plan(workload, run_files=True)
    # What was found here may be another than what was asked for.
    write_or_verify(path, plan)
    profile = read_profile(path.parent)
    if profile is None:
        raise FolderError(f"{path.parent} has no profile")
    task = tasks(plan)[index]
    own = task_folder(path, task)
    with Lock(own, SECONDS_FOR_ANOTHER):
        if read_result(path, task) is None:
            result = run_training(
                plan,
                task,
                profile,
                folder=own,
                checkpoints=Checkpoints(own, SECONDS_BETWEEN),
                export_models=export_models,
            )
            # As a job that failed, for whoever looks at a cluster's list of them.
            if result.error:
                raise RuntimeError(result.error)


def _refuse_files(folder: Path, manifest: Manifest, files: Mapping[str, str]) -> None:
    """Refuse to run what a folder names, and those who started this process did not."""
    for name, digest in manifest.files_sha256.items():
        if files.get(name) != digest:
            raise FolderError(
                f"{folder} names the file {name}, and the command that started this process did "
                "not, or with another text: nothing of it is run"
            )
    refuse_changed(manifest.files_sha256)
