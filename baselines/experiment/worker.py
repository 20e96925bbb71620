"""Run one training of a kept comparison, in a process of its own.

It writes points and result into the folder, where the process that started it reads them. A folder
may come from anywhere. So of the Python files that it names this runs those alone that the process
that starts it names, and only with this very text: those of the user's command.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.experiment.comparison import (
    Silent,
    run_training,
    tasks,
)
from baselines.experiment.lock import Lock
from baselines.experiment.manifest import FolderError, Manifest
from baselines.experiment.store import (
    read_profile,
    read_result,
    refuse_changed,
    task_folder,
    write_or_verify,
    write_result,
)
from baselines.methods.method import find
from baselines.training.checkpoint import (
    SECONDS_BETWEEN,
    Checkpoints,
    write_atomically,
)
from baselines.training.results import Point, TrainingResult
from baselines.workloads import load

POINTS = "points.jsonl"
# A process whose starter was killed ends within this time, and then frees its training.
SECONDS_FOR_ANOTHER = 30.0


class _Writer(Silent):
    """A listener in the process of a task: writes points down for the one that reads them."""

    def __init__(self, folder: Path, seed_with_models: int) -> None:
        self._folder = folder
        self._seed = seed_with_models
        # From the beginning: those before a checkpoint are told again.
        self._file = (folder / POINTS).open("w")

    def point(self, method: str, seed: int, point: Point) -> None:  # noqa: ARG002
        self._file.write(json.dumps({"method": method, **dataclasses.asdict(point)}) + "\n")
        self._file.flush()

    def ended(self, method: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
        if seed == self._seed:
            buffer = io.BytesIO()
            torch.save({"model": model.state_dict(), "inputs": inputs}, buffer)
            write_atomically(self._folder / model_file(method), buffer.getvalue())

    def training_ended(self, result: TrainingResult) -> None:  # noqa: ARG002
        self._file.close()


def model_file(method: str) -> str:
    """Return the name of the file with a method's model."""
    return f"model-{Path(method).stem}.pt"


def work(folder: str, index: int, files: Mapping[str, str]) -> None:
    """Run a task, or resume it.

    Args:
        folder: of a comparison, beside that of its profile.
        index: number of the task.
        files: of the user's own that may be run, and the SHA-256 of their texts.

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
    plan = manifest.plan(load(name, None if data is None else Path(data)))
    # What was found here may be another than what was asked for.
    write_or_verify(path, plan)
    profile = read_profile(path.parent)
    if profile is None:
        raise FolderError(f"{path.parent} has no profile")
    task = tasks(plan)[index]
    own = task_folder(path, task)
    with Lock(own, SECONDS_FOR_ANOTHER):
        if read_result(path, task) is None:
            checkpoints = Checkpoints(own, SECONDS_BETWEEN)
            listener = _Writer(own, plan.seeds[0])
            methods = {name: find(name) for name in task.methods}
            result = run_training(plan, task, methods, profile, listener, checkpoints)
            write_result(path, task, result)
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
