"""What an average says of itself: its sources, their SHA-256, weights and versions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch

from lawa_opt.averaging_files.find import CheckpointError, reading
from lawa_opt.averaging_files.read import Checkpoint

BLOCK_BYTES = 1 << 20
MOST_THREADS = 4


@dataclass(frozen=True)
class Source:
    """A checkpoint that was averaged.

    Attributes:
        path: of the file, index or folder, from the folder of the average.
        step: that it counted for, if known.
        weight: in the mean; of any sum.
        sha256: of each of its files, by name.
    """

    path: str
    step: int | None
    weight: float
    sha256: dict[str, str]


@dataclass(frozen=True)
class Provenance:
    """How an average was made.

    Attributes:
        sources: oldest first.
        unit: what their steps count.
        weights: the name of the weights, or "given".
        key: where the state dict lies in the sources.
        strip_prefix: what names have lost.
        dtype: of the floating-point tensors, if it is not the sources'.
        lawa_opt: version.
        torch: version.
    """

    sources: tuple[Source, ...]
    unit: str
    weights: str
    key: str
    strip_prefix: tuple[str, ...]
    dtype: str | None
    lawa_opt: str = field(default="")
    torch: str = field(default=torch.__version__)

    def text(self) -> str:
        """Return it as JSON, the same for the same average."""
        return json.dumps(asdict(self), ensure_ascii=True)


def parsed(text: str, where: Path) -> Provenance:
    """Return what an average says of itself.

    Raises:
        CheckpointError: it says nothing that can be understood.
    """
    with reading(where):
        held: Any = json.loads(text)
        try:
            sources = tuple(Source(**source) for source in held.pop("sources"))
            read = Provenance(sources, **held)
            sound = all(
                isinstance(each.path, str)
                and isinstance(each.weight, (int, float))
                and all(isinstance(part, str) for pair in each.sha256.items() for part in pair)
                for each in sources
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("what it says of its sources is damaged") from error
        if not sound or not sources or not isinstance(read.key, str):
            raise ValueError("what it says of its sources is damaged")
        return read


def path_from(folder: Path, path: Path) -> str:
    """Return a path as it is from a folder, which moves along with both."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


@contextmanager
def hashing(checkpoints: Sequence[Checkpoint]) -> Iterator[Any]:
    """Take SHA-256 of all files beside what else is done, and give a call that waits for them.

    The call returns the sums of each checkpoint's files, by name.
    """
    stop = Event()

    def sums(checkpoint: Checkpoint) -> dict[str, str]:
        return {file.name: sha256_of(file, stop) for file in checkpoint.fingerprints}

    with ThreadPoolExecutor(_spare_threads(), thread_name_prefix="lawa-opt-sha256") as pool:
        made = [pool.submit(sums, checkpoint) for checkpoint in checkpoints]
        try:
            yield lambda: [each.result() for each in made]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _spare_threads() -> int:
    """Return how many threads take sums: one core makes the mean, and a disk feeds a few more."""
    return max(1, min(MOST_THREADS, torch.get_num_threads() - 1))


def sha256_of(file: Path, stop: Event | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with reading(file), file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            total.update(buffer[:count])
            if stop is not None and stop.is_set():
                raise CheckpointError(f"{file} was not read to its end")
    return total.hexdigest()
