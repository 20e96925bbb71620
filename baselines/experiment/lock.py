"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

SECONDS_BETWEEN_TRIES = 0.2
# For whoever only looks whether it is locked.
SECONDS_OF_A_LOOK = 0.5


class LockedError(RuntimeError):
    """Another process has the folder."""


class Lock:
    """Keeps others out of a folder while its block runs; freed also when the process is killed.

    Args:
        folder: made if it is not there.
        wait_seconds: for another process to leave.

    Raises:
        LockedError: on entering, with the host, number and start of the process that has it; or
            the folder cannot be written to.
    """

    def __init__(self, folder: Path, wait_seconds: float = SECONDS_OF_A_LOOK) -> None:
        self._folder = folder
        self._wait_seconds = wait_seconds

    def __enter__(self) -> Self:
        # Never removed: a process that waits at the old file would not see who has the new one.
        path = self._folder / "lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise LockedError(f"{path} cannot be written: {error.strerror}") from error
        last = time.monotonic() + self._wait_seconds
        while not self._try():
            if time.monotonic() >= last:
                holder = os.pread(self._file, 1000, 0).decode(errors="replace").strip()
                os.close(self._file)
                raise LockedError(
                    f"{self._folder} is in use by {holder or 'another process'}: wait until it "
                    "ends, or end it and give the same command, which goes on from there"
                )
            time.sleep(SECONDS_BETWEEN_TRIES)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(self._file, 0)
        owner = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
        os.pwrite(self._file, owner.encode(), 0)
        return self

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)


def is_locked(folder: Path) -> bool:
    """Say whether a process has the folder."""
    try:
        file = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
