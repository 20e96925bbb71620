"""Text in three parts: from one file, from a folder, or from a data set of `datasets`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from baselines.workloads.base import WorkloadError

CHUNK_BYTES = 1024
SHORTEST_BYTES = 20 * CHUNK_BYTES
HUB = ("Salesforce/wikitext", "wikitext-103-raw-v1")
SUFFIXES = (".tokens", ".raw", ".txt")


@dataclass(frozen=True)
class Corpus:
    """The parts as raw bytes, and where they come from, for `Workload.data`."""

    train: bytes
    validation: bytes
    test: bytes
    data: dict[str, Any]

    @classmethod
    def split(cls, text: bytes, source: str) -> Self:
        """Split a text by chunks, 8 : 1 : 1.

        The tenth chunk of every ten is for testing and the one before it for validation, so both
        parts come from everywhere in the text and no byte is in two parts.

        Raises:
            WorkloadError: the text is too short to be split.
        """
        if len(text) < SHORTEST_BYTES:
            raise WorkloadError(
                f"{source} has {len(text)} bytes; at least {SHORTEST_BYTES} are needed"
            )
        chunks = [text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES)]
        held_out = b"".join(chunks[8::10]), b"".join(chunks[9::10])
        train = b"".join(chunk for index, chunk in enumerate(chunks) if index % 10 < 8)
        digest = hashlib.sha256(text).hexdigest()
        return cls(train, *held_out, {"source": source, "bytes": len(text), "sha256": digest})

    @classmethod
    def of_parts(cls, parts: dict[str, bytes], source: str) -> Self:
        """Return parts that were split before: "train", "validation" and "test"."""
        lengths = {name: len(part) for name, part in parts.items()}
        for name, length in lengths.items():
            if length < SHORTEST_BYTES:
                raise WorkloadError(
                    f"the {name} part of {source} has {length} bytes; at least {SHORTEST_BYTES} "
                    "are needed"
                )
        digest = hashlib.sha256(repr(lengths).encode())
        for part in parts.values():
            digest.update(part)
        size = sum(lengths.values())
        return cls(**parts, data={"source": source, "bytes": size, "sha256": digest.hexdigest()})


def read(path: Path) -> Corpus:
    """Read a text file, which is split by chunks, or a folder that comes in three parts.

    A folder holds either text files with train, valid and test in their names (as WikiText's
    `wiki.train.tokens`), or what `datasets` writes: `save_to_disk`, or Parquet files.

    Raises:
        WorkloadError: it cannot be read, a part is missing or too short, or `datasets` is needed
            and not installed.
    """
    try:
        if path.is_file():
            return Corpus.split(path.read_bytes(), path.name)
        if (path / "dataset_dict.json").exists():
            return _of_datasets(_datasets().load_from_disk(str(path)), path.name)
        if path.is_dir() and list(path.rglob("*.parquet")):
            return _of_datasets(_datasets().load_dataset(str(path)), path.name)
        parts = {name: _part(path, name).read_bytes() for name in ("train", "validation", "test")}
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror or error}") from error
    return Corpus.of_parts(parts, path.name)


def _part(folder: Path, name: str) -> Path:
    """Return the one text file of a part."""
    word = "valid" if name == "validation" else name
    if not folder.exists():
        raise WorkloadError(f"{folder}: No such file or directory")
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    found = [path for path in files if word in path.name]
    if len(found) != 1:
        raise WorkloadError(
            f"{folder} must hold one text file ({', '.join(SUFFIXES)}) with {word!r} in its name, "
            f"as wiki.train.tokens; it holds {', '.join(p.name for p in found or files) or 'none'}"
        )
    return found[0]


def download() -> Corpus:
    """Get WikiText-103 from the Hugging Face hub, or from the cache of `datasets`.

    Raises:
        WorkloadError: `datasets` is not installed, or the hub cannot be reached.
    """
    datasets = _datasets()
    try:
        found = datasets.load_dataset(*HUB)
    except Exception as error:  # Its errors, and those of the libraries under it, are many.
        raise WorkloadError(
            f"{HUB[0]} could not be had from the hub ({type(error).__name__}): give a local copy "
            "with --data PATH, a text file or a folder with wiki.train.tokens and the like"
        ) from error
    return _of_datasets(found, "/".join(HUB))


def _of_datasets(found: Any, source: str) -> Corpus:
    names = ("train", "validation", "test")
    if missing := [name for name in names if name not in found]:
        raise WorkloadError(f"{source} has no part {', '.join(missing)}; it has {', '.join(found)}")
    parts = {}
    for name in names:
        if "text" not in found[name].column_names:
            columns = ", ".join(found[name].column_names)
            raise WorkloadError(f"{source}: a column `text` is needed; {name} has {columns}")
        rows = (row.rstrip("\n") for row in found[name]["text"])
        parts[name] = "\n".join(rows).encode()
    return Corpus.of_parts(parts, source)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise WorkloadError(
            f"`datasets` is needed to read this text ({error}): pip install "
            "'lawa-opt[real-workloads]', or give --data PATH of plain text files"
        ) from error
    return datasets
