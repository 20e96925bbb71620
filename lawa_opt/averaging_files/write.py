"""Checkpoint files written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import CheckpointError, fingerprint
from lawa_opt.averaging_files.read import safetensors_library


def refuse_place(target: Path) -> None:
    """Refuse to write where nothing can be written."""
    if not target.parent.is_dir():
        raise CheckpointError(f"{target} lies in a folder that does not exist")
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{target} is a folder, FIFO, socket or device")


def refuse_input(target: Path, given: Mapping[Path, frozenset[tuple[int, ...]] | Path]) -> None:
    """Refuse to write over an input."""
    for path, identity in given.items() if target.exists() else ():
        if isinstance(identity, frozenset) and fingerprint(target)[:2] in identity:
            raise CheckpointError(f"{target} is part of the input {path}")


def refuse_names(target: Path, tensors: dict[Any, Tensor]) -> None:
    """Refuse names and dtypes that a safetensors file would not give back."""
    library = safetensors_library().torch
    for name, tensor in tensors.items():
        probe = {name: torch.empty(1, dtype=tensor.dtype)}
        try:
            held = library.load(library.save(probe)).keys() == probe.keys()
        except Exception:  # of many types, by the name or dtype and the library's version
            held = False
        if not held:
            raise CheckpointError(
                f"{target} cannot hold {name!r}, which is {tensor.dtype}: safetensors has no such "
                "name or dtype, so write a .pt file"
            )


def write_safetensors(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a state dict that the library can read back."""
    library = safetensors_library()
    try:
        library.torch.save_file(state, file, metadata)
        with library.safe_open(file, "pt"):
            pass
    except library.SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise CheckpointError(f"the average is no safetensors file: {error}") from error


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the target's name when whole, and else is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # the umask's, where safetensors made its own file
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch.save hides a failed write behind a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise
