"""Checkpoint files read mapped, a part at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import (
    WEIGHTS_FILES,
    CheckpointError,
    find_files,
    fingerprint,
    reading,
)
from lawa_opt.averaging_files.load import load, record_sizes, torch_load

Piece = tuple[Any, int, int]  # a tensor's name, its first element and the end of the piece


# Tensors may share what a file holds (tied, expanded), but not claim so many bytes beyond it.
MOST_EXPANDED_BYTES = 1 << 30


class Checkpoint:
    """The tensors of a safetensors or torch file, or of the shards that an index names.

    Attributes:
        path: what the user named: a file, an index or a folder.
        source: the file, or the index.
        tensors: names to meta tensors, which carry shape and dtype.
        ties: each name that stands for an earlier name's tensor, to that name.
        metadata: the text entries of safetensors headers.
        files: what it lies in, without the index.
        fingerprints: of its files, which tell that one was changed.
        steps_inside: what its files call the step that they were written after, by name.
        step: the step that it counts for, once it was chosen among others; None if not known.
        stripped: the prefixes that some of its names have lost.
        provenance: what a file that lawa_opt wrote says of its sources, as JSON.
    """

    def __init__(self, path: Path, key: str = "", strip_prefix: Sequence[str] = ()) -> None:
        self.path = path
        self.key = key
        self.tensors: dict[Any, Tensor] = {}
        self.ties: dict[Any, Any] = {}
        self.metadata: dict[str, str] = {}
        self.steps_inside: dict[str, int] = {}
        self.step: int | None = None
        self.provenance: str | None = None
        self._file_of: dict[Any, Path] = {}
        index, files = find_files(path)
        self.source = index or next(iter(files))
        self.files = frozenset(files)
        self.fingerprints = {
            file: fingerprint(file) for file in (*([index] if index else []), *files)
        }
        self._scan_all(files)
        if not self.tensors:
            raise CheckpointError(f"{path} holds no tensors")
        self._refuse_expanded()
        self._stored = {name: name for name in self.tensors}
        self.stripped: set[str] = set()
        for prefix in strip_prefix:
            self._strip(prefix)

    @property
    def largest_file(self) -> int:
        """The size in bytes of the largest of its files."""
        return max(size for _, _, size, _ in self.fingerprints.values())

    @property
    def is_folder(self) -> bool:
        """Return whether what lies beside its files describes it, as in Hugging Face's folders."""
        return self.path.is_dir() or self.source.name in WEIGHTS_FILES

    def file_of(self, name: Any) -> Path:
        """Return the file that a tensor lies in."""
        return self._file_of[self._stored[name]]

    def _scan_all(self, files: dict[Path, list[str]]) -> None:
        if self.key and (self.source not in files or self.source.suffix == ".safetensors"):
            raise CheckpointError(
                f"{self.path}: safetensors files and shards do not nest, so there is no key "
                f"{self.key!r}"
            )
        for file, names in files.items():
            with reading(file):
                self._scan(file, names)

    def _strip(self, prefix: str) -> None:
        """Take a prefix from all names that have it."""
        new = {n: n.removeprefix(prefix) if isinstance(n, str) else n for n in self.tensors}
        if new.keys() != {*new.values()}:
            self.stripped.add(prefix)
        taken: dict[Any, Any] = {}
        for old, name in new.items():
            if taken.setdefault(name, old) != old:
                said = f"{taken[name]!r} and {old!r} are both {name!r} without {prefix!r}"
                raise CheckpointError(f"{self.path}: {said}")
        self.tensors = {new[old]: like for old, like in self.tensors.items()}
        self.ties = {new[old]: new[first] for old, first in self.ties.items()}
        self._stored = {new[old]: stored for old, stored in self._stored.items()}

    def _scan(self, file: Path, names: Sequence[str]) -> None:
        """Take note of tensors, of which nothing is in memory yet."""
        sizes = None if file.suffix == ".safetensors" else record_sizes(file)
        state, metadata, steps, provenance = load(file, self.key)
        self.metadata |= metadata
        self.steps_inside |= steps
        self.provenance = self.provenance or provenance
        first: dict[Any, Any] = {}
        storages: dict[int, int] = {}
        for name in names or state:
            if name not in state:
                raise CheckpointError(f"{file} lacks {name!r}, which the index names")
            value = state[name]
            if not isinstance(value, Tensor):
                raise CheckpointError(_no_tensor(file, self.key, state, name))
            if value.is_meta:
                raise CheckpointError(f"{file}: {name!r} is on meta: it has no values")
            if is_quantised(value) or value.is_nested or value.layout != torch.strided:
                kind = f"{value.dtype}, {'nested' if value.is_nested else value.layout}"
                raise CheckpointError(f"{file}: {name!r} is quantised or sparse: {kind}")
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            self.tensors[name] = value.detach().to("meta")
            self._file_of[name] = file
            place = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if value.numel() and first.setdefault(place, name) != name:
                self.ties[name] = first[place]
        if sizes is not None and Counter(storages.values()) - sizes:
            # Mapped, a tensor would go on with the bytes of what lies behind its own.
            raise ValueError("it is damaged: its tensors are not of the sizes of its records")

    def _refuse_expanded(self) -> None:
        apart = {name: like.nbytes for name, like in self.tensors.items() if name not in self.ties}
        claimed, held = (
            sum(apart.values()),
            sum(size for _, _, size, _ in self.fingerprints.values()),
        )
        if claimed > 2 * held + MOST_EXPANDED_BYTES:
            name = max(apart, key=apart.__getitem__)
            raise CheckpointError(
                f"{self.path} holds {held} bytes, and its tensors claim {claimed}: {name!r} of "
                f"shape {[*self.tensors[name].shape]} repeats what is stored, as by expand()"
            )

    def read(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Yield the pieces as flat tensors, which keep their files mapped.

        What is read of a mapping counts as this process's memory until it is unmapped, so files are
        mapped anew for each reading.
        """
        self.refuse_changed()
        names: dict[Path, list[Any]] = {}
        for name, _ in groupby(pieces, lambda piece: piece[0]):
            names.setdefault(self._file_of[self._stored[name]], []).append(self._stored[name])
        states: dict[Path, dict[Any, Any]] = {}
        for name, group in groupby(pieces, lambda piece: piece[0]):
            stored = self._stored[name]
            file = self._file_of[stored]
            with reading(file):
                if file not in states:
                    states[file] = load(file, self.key, names[file]).state
                flat = states[file][stored].detach().reshape(-1)
            for _, low, high in group:
                yield flat[low:high]

    def items(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield names and tensors one by one, each mapped and in its shape."""
        pieces = [(name, 0, like.numel()) for name, like in self.tensors.items()]
        for (name, like), flat in zip(self.tensors.items(), self.read(pieces), strict=True):
            yield name, flat.view(like.shape)

    def refuse_changed(self) -> None:
        """Refuse files that are not what they were when the checkpoint was opened."""
        for file, before in self.fingerprints.items():
            if fingerprint(file) != before:
                raise CheckpointError(f"{file} changed while it was read")

    def put_in_place(self, state: dict[Any, Tensor]) -> tuple[Any, list[str]]:
        """Return the checkpoint with another state dict at its key, and what lies beside that."""
        if not self.key:
            return state, []
        (file,) = self.fingerprints
        with reading(file):
            whole = within = torch_load(file)
            beside: list[str] = []
            *above, last = self.key.split(".")
            for part in above:
                beside += [str(name) for name in within if name != part]
                within = within[part]
            beside += [str(name) for name in within if name != last]
            within[last] = state
        return whole, beside


def is_quantised(tensor: Tensor) -> bool:
    """Return whether a tensor's scales lie elsewhere, as those of floats of a byte or less do."""
    return tensor.is_quantized or (tensor.is_floating_point() and tensor.itemsize < 2)


def _no_tensor(file: Path, key: str, state: dict[Any, Any], name: Any) -> str:
    value = state[name]
    under = f"{key}." if key else ""
    if isinstance(value, dict):
        return f"{file}: {name!r} is a dict: are the weights in it? {_as_key(under + name)}"
    said = f"{file}: {name!r} is not a tensor but {type(value).__name__}: {value!r:.50}"
    for other, held in state.items():
        if isinstance(held, dict) and held and all(isinstance(x, Tensor) for x in held.values()):
            return f"{said}: are the weights beside it? {_as_key(f'{under}{other}')}"
    return said


def _as_key(key: str) -> str:
    return f"Then give key={key!r} (--key {key})"
