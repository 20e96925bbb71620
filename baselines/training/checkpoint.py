"""Checkpoints of a training that is under way: the two latest, each whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch


class _Resumable(Protocol):
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


_T = TypeVar("_T", bound=_Resumable)

SECONDS_BETWEEN = 3.0
# Of the time, that saving may take, however large the model is.
LARGEST_SHARE = 1 / 20
KEPT = 2
_DIGEST_BYTES = 32


class StorageError(OSError):
    """What should be kept cannot be written: the comparison stops, and goes on when it can."""


class CheckpointError(RuntimeError):
    """None of the checkpoints can be gone on from."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Tell what keeps a file from being written as a StorageError, with the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"{path} could not be written: its folder was removed while the comparison ran. Give "
            "the same command to start anew"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror}. What was written before is whole: "
            "mend it and give the same command, which goes on from there"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file; it is always the one before or this one, also after a loss of power.

    Its folder is made if it is not there, in one that is: a comparison whose folder was removed
    while it ran is not begun again in silence.

    Raises:
        StorageError: it cannot be written; the one before stands.
    """
    temporary = path.with_name(f"{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


class Checkpoints:
    """The latest checkpoints of one training, in a folder.

    Args:
        folder: made if it is not there, in one that is.
        seconds: least wall time between two, and more where saving takes long; 0 for one after
            every step, whatever it takes.
        warn: told, in a line, of a checkpoint that cannot be gone on from.
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
        """Say whether it is time for another one."""
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

    def resume(self, begin: Callable[[], _T]) -> _T:
        """Return what begins, in the newest state that it can take; as it began if none was saved.

        Args:
            begin: makes it anew, for what took a state in part is not gone on with.

        Raises:
            CheckpointError: there are some, and none is good: it never starts anew unasked.
        """
        files = self._files()
        for path in files:
            begun = begin()
            try:
                begun.load_state_dict(_read(path))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            # No list of errors foresees what a file may hold in place of a state.
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                if not isinstance(error, OSError | ValueError):
                    reason = f"{type(error).__name__}: {reason}"
                self._warn(f"checkpoint {path} cannot be read ({reason}); trying the one before it")
            else:
                return begun
        if files:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read: remove that folder to start this "
                "training again from its beginning"
            )
        return begin()

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
    try:
        state = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # Not what torch says of it, which is how to have it run all the same.
        raise ValueError(
            "it holds more than tensors and plain values, and to read that can run code"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__} in place of a training's state")
    return state
