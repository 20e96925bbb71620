"""Which files a checkpoint is, and whether they are what they were."""

from __future__ import annotations

import json
import stat
import warnings
from collections.abc import Iterator
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


class CheckpointError(ValueError):
    """A checkpoint that cannot be averaged or written; the message names the file and the cause."""


def find_files(path: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """Return the index of a checkpoint, if it has one, and its files with the names to take.

    Names are given by an index alone; without them, all that a file holds is taken.
    """
    with reading(path):
        if path.is_dir():
            path = weights_in(path)
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


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one checkpoint, by the names in it."""
    return any((folder / name).exists() for name in (*WEIGHTS_FILES, DCP_INDEX))


def weights_in(folder: Path) -> Path:
    """Return the file of weights of a folder, or their index.

    Raises:
        CheckpointError: it has none, or several.
    """
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
