"""Evaluations that are kept in a file, a line each, so that a study that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.studying.evaluation import Halves


class Kept:
    """The evaluations in `evaluations.jsonl` of a folder, or of this process where there is none.

    Args:
        folder: is made if it does not exist.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / "evaluations.jsonl"
        self.values: dict[str, dict[str, Halves]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Read what the file holds by now. A line that was cut off counts for nothing."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                pairs = {name: (float(a), float(b)) for name, (a, b) in row["values"].items()}
                self.values[row["key"]] = pairs
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def add(self, key: str, values: dict[str, Halves], what: str) -> None:
        """Keep an evaluation; `what` tells a reader of the file which it is."""
        self.values[key] = values
        if self.path is None:
            return
        row = json.dumps({"key": key, "what": what, "values": values}) + "\n"
        # In one write, as another process may append too; after a line that was cut off, anew.
        with self.path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                row = row if file.read(1) == b"\n" else "\n" + row
            file.write(row.encode())


def key_of(*parts: Any) -> str:
    """Return a key that differs where a part does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Refuse a second study in the same folder.

    Raises:
        CheckpointError: there is one, or no folder can be there.
    """
    if folder is None:
        yield
        return
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} cannot be the study's folder, since a file is there: give another"
        ) from error
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise CheckpointError(f"another study is under way in {folder}") from error
    try:
        yield
    finally:
        lock.release()
