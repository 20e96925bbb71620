"""Folders that hold checkpoints, and what in them is one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lawa_opt.averaging_files.find import (
    TORCH_SUFFIXES,
    CheckpointError,
    is_checkpoint,
    reading,
    weights_in,
)
from lawa_opt.averaging_files.load import provenance_in

IN_FOLDERS = "lawa_opt.json"  # where an average that is a folder says what it was made of
# What training loops write beside weights, by the beginning of the name.
COMPANIONS = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
SHARD = re.compile(r"-\d+-of-\d+\.")


def is_average(path: Path) -> bool:
    """Return whether lawa_opt wrote a checkpoint; of what cannot be read, opening tells."""
    if path.is_dir():
        return (path / IN_FOLDERS).is_file()
    try:
        return provenance_in(path)[0] is not None
    except CheckpointError:
        return False


def expanded(paths: Sequence[Path]) -> tuple[list[Path], list[str], bool]:
    """Return paths with the checkpoints of a folder in its place, notes, and if there was one."""
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        with reading(path):
            within = _checkpoints_in(path) if path.is_dir() else []
            itself = path.is_dir() and (within == [] or is_checkpoint(path)) and weights_in(path)
        if within and itself:
            raise CheckpointError(
                f"{path} is a checkpoint and holds others, as {within[0].name}: give them, or the "
                f"file {itself.name} in it"
            )
        if within:
            averages = [each for each in within if is_average(each)]
            notes.append(f"{path}: {len(within) - len(averages)} checkpoints in it")
            said = "which is an average; give it by name to take it"
            notes += [f"left out: {each}, {said}" for each in averages]
            within = [each for each in within if each not in averages]
        found += within or [path]
    return found, notes, bool(notes)


def _checkpoints_in(folder: Path) -> list[Path]:
    """Return what lies in a folder and is a checkpoint of its own, by name."""
    if is_checkpoint(folder):
        # Its files are its own, but a Trainer writes the last weights beside earlier checkpoints.
        return sorted(path for path in folder.iterdir() if path.is_dir() and is_checkpoint(path))
    held = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if is_checkpoint(path):
                held.append(path)
        elif path.suffix in (".safetensors", *TORCH_SUFFIXES):
            if path.name.startswith((*COMPANIONS, ".")):
                continue
            if SHARD.search(path.name):
                raise CheckpointError(f"{path} is a shard, and no index lies beside it")
            held.append(path)
    return held
