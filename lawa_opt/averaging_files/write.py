"""Checkpoint files written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import CheckpointError, fingerprint
from lawa_opt.averaging_files.folders import IN_FOLDERS
from lawa_opt.averaging_files.load import safetensors_library


def refuse_place(target: Path, *, folder: bool) -> None:
    """Refuse to write where nothing can be written."""
    if not target.parent.is_dir():
        raise CheckpointError(f"{target} lies in a folder that does not exist")
    if target.exists() and not folder and not target.is_file():
        raise CheckpointError(f"{target} is a folder, FIFO, socket or device")
    if target.exists() and folder and not target.is_dir():
        raise CheckpointError(f"{target} is a file")


def refuse_existing(
    target: Path, given: Iterable[tuple[Path, frozenset[tuple[int, ...]] | Path]], overwrite: bool
) -> None:
    """Refuse to write over an input, and over anything else unless told so."""
    if not target.exists():
        return
    for path, identity in given:
        within = path.resolve().is_relative_to(target.resolve()) and target.is_dir()
        same = target.is_file() and fingerprint(target)[:2] in (
            identity if isinstance(identity, frozenset) else ()
        )
        if within or same:
            raise CheckpointError(
                f"{target} is part of the input {path}"
                if same
                else f"{target} holds the input {path}"
            )
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{target} exists: say --overwrite, or write to another name")
    if target.is_dir() and not (target / IN_FOLDERS).is_file():
        raise CheckpointError(
            f"{target} was not written by lawa_opt (it has no {IN_FOLDERS}), so it is not replaced"
        )


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
def atomic_write(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file or folder that takes the target's name when whole.

    Otherwise it is removed, and what has the name stays.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if folder:
            temporary.mkdir()
        probe = temporary / "mode" if folder else temporary
        probe.touch(exist_ok=False)
        mode = stat.S_IMODE(probe.stat().st_mode)
        if folder:
            probe.unlink()
        yield temporary
        for path in temporary.iterdir() if folder else [temporary]:
            path.chmod(mode)  # the umask's, where safetensors made its own file
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _take_name(temporary, target)
    except BaseException as error:
        _remove(temporary)
        # torch.save hides a failed write behind a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise


def _take_name(temporary: Path, target: Path) -> None:
    if not (temporary.is_dir() and target.is_dir()):
        temporary.replace(target)
        return
    before = temporary.with_suffix(".old")
    target.replace(before)
    try:
        temporary.replace(target)
    except BaseException:
        before.replace(target)
        raise
    _remove(before)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
