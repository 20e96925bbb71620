"""Which files a checkpoint is, and whether they are what they were."""

from __future__ import annotations

import json
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# In a folder, the first two go before all others, as the frameworks have it.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
DCP_INDEX = ".metadata"  # of torch.distributed.checkpoint
# What training loops write beside weights, by the beginning of the name.
COMPANIONS = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
SHARD = re.compile(r"-\d+-of-\d+\.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be averaged or written; the message names the file and the cause."""


def find_files(path: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """Return the index of a checkpoint, if it has one, and its files with the names to take.

    Names are given by an index alone; without them, all that a file holds is taken.
    """
    with reading(path):
        if path.is_dir():
            path = _weights_in(path)
        if path.suffix == ".distcp":
            raise CheckpointError(
                f"{path} is a part of a checkpoint: give its folder, {path.parent}"
            )
        if path.name == DCP_INDEX:
            return path, {part: [] for part in sorted(path.parent.glob("*.distcp"))}
        if path.suffix != ".json":
            return None, {path: []}
    with reading(path):
        fingerprint(path)
        held = json.loads(path.read_text(encoding="utf-8"))
        shards = held.get("weight_map") if isinstance(held, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise ValueError("it has no weight_map that names files, so it is no index of shards")
        files: dict[Path, list[str]] = {}
        for name, shard in shards.items():
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
                raise CheckpointError(
                    f"{path} puts {name!r} in {shard!r:.200}, which is no file's name: shards lie "
                    "beside their index"
                )
            files.setdefault(path.with_name(shard), []).append(name)
        return path, files


def expanded(paths: Sequence[Path]) -> tuple[list[Path], list[str], bool]:
    """Return paths with the checkpoints of a folder in its place, notes, and if there was one."""
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        with reading(path):
            within = _checkpoints_in(path) if path.is_dir() else []
            itself = path.is_dir() and is_checkpoint(path)
        if within and itself:
            raise CheckpointError(
                f"{path} is a checkpoint and holds others, as {within[0].name}: give them, or the "
                f"file {_weights_in(path).name} in it"
            )
        if within:
            notes.append(f"{path}: {len(within)} checkpoints in it")
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


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one checkpoint, by the names in it."""
    return any((folder / name).exists() for name in (*WEIGHTS_FILES, DCP_INDEX))


def _weights_in(folder: Path) -> Path:
    held = [folder / name for name in WEIGHTS_FILES if (folder / name).exists()]
    if (folder / DCP_INDEX).exists():
        held.append(folder / DCP_INDEX)
    if not held:
        names = [name for name in WEIGHTS_FILES if not name.endswith(".json")]
        raise CheckpointError(
            f"{folder} holds neither {', '.join(names)} nor an index of such, nor checkpoints"
        )
    if len(held) > 1 and held[0].name not in WEIGHTS_FILES[:2]:
        raise CheckpointError(f"{folder} holds {held[0].name} and {held[1].name}: give one of them")
    return held[0]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Name the file and the reason in one line, whatever goes wrong in reading."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what is then refused
            yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
        reason = reason.splitlines()[0].partition(". ")[0]
        raise CheckpointError(f"{file} cannot be read: {reason}") from error


def fingerprint(file: Path) -> tuple[int, int, int, int]:
    """Return what identifies a file (device, inode) and changes with it (size, time in ns)."""
    with reading(file):
        seen = file.stat()
        if not stat.S_ISREG(seen.st_mode):
            # To open a FIFO would wait for its writer.
            raise ValueError("it is no regular file but a folder, FIFO, socket or device")
        return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
