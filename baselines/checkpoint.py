"""Checkpoints of a training that is under way: the two latest, each whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS_BETWEEN = 3.0
# Of the time, that saving may take, however large the model is.
LARGEST_SHARE = 1 / 20
KEPT = 2
_DIGEST_BYTES = 32


class StorageError(OSError):
    """What should be kept cannot be written: the comparison stops, and goes on when it can."""


class CheckpointError(RuntimeError):
    """None of the checkpoints can be read."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file; it is always the one before or this one, also after a loss of power.

    Raises:
        StorageError: it cannot be written; the one before stands.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{path} could not be written: {error.strerror}. What was written before is whole: "
            "mend it and give the same command, which goes on from there"
        ) from error


class Checkpoints:
    """The latest checkpoints of one training, in a folder.

    Args:
        folder: made if it is not there.
        seconds: least wall time between two, and more where saving takes long; 0 for one after
            every step, whatever it takes.
        warn: told, in a line, of a checkpoint that cannot be read.
    """

    def __init__(
        self, folder: Path, seconds: float = SECONDS_BETWEEN, warn: Callable[[str], None] = print
    ) -> None:
        self.folder = folder
        self._seconds = seconds
        self._warn = warn
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() >= self._next

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those before the one before it.

        Raises:
            StorageError: it cannot be written; those before stand.
        """
        began = time.monotonic()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).digest()
        write_atomically(self.folder / f"step-{step:012d}.pt", content + digest)
        for old in self._files()[KEPT:]:
            old.unlink()
        now = time.monotonic()
        if self._seconds:
            self._next = now + max(self._seconds, (now - began) / LARGEST_SHARE)

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if none was ever saved.

        Raises:
            CheckpointError: there are some, and none can be read: it never starts anew unasked.
        """
        files = self._files()
        for path in files:
            try:
                return _read(path)
            except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                reason = " ".join(str(error).split())[:200]
                self._warn(f"checkpoint {path} cannot be read ({reason}); trying the one before it")
        if files:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read: remove that folder to start this "
                "training again from its beginning"
            )
        return None

    def remove(self) -> None:
        """Remove them all, once the training has ended and its result is kept."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("it is truncated or corrupt: its digest is another")
    state: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    return state
