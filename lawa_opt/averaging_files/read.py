"""Checkpoint files read mapped, a part at a time."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import CheckpointError, find_files, fingerprint, reading
from lawa_opt.averaging_files.plain_data import PLAIN

Piece = tuple[Any, int, int]  # a tensor's name, its first element and the end of the piece


# Tensors may share what a file holds (tied, expanded), but not claim so many bytes beyond it.
MOST_EXPANDED_BYTES = 1 << 30


class Checkpoint:
    """The tensors of a safetensors or torch file, or of the shards that an index names.

    Attributes:
        source: the file, or the index.
        tensors: names to meta tensors, which carry shape and dtype.
        ties: each name that stands for an earlier name's tensor, to that name.
        metadata: the text entries of safetensors headers.
        fingerprints: of its files, which tell that one was changed.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self.path = path
        self.key = key
        self.tensors: dict[Any, Tensor] = {}
        self.ties: dict[Any, Any] = {}
        self.metadata: dict[str, str] = {}
        self._file_of: dict[Any, Path] = {}
        index, files = find_files(path)
        self.source = index or next(iter(files))
        if key and (index or any(file.suffix == ".safetensors" for file in files)):
            raise CheckpointError(
                f"{path}: safetensors files and shards do not nest, so there is no key {key!r}"
            )
        self.fingerprints = {
            file: fingerprint(file) for file in (*([index] if index else []), *files)
        }
        for file, names in files.items():
            with reading(file):
                self._scan(file, names)
        if not self.tensors:
            raise CheckpointError(f"{path} holds no tensors")
        self._refuse_expanded()

    def _scan(self, file: Path, names: Sequence[str]) -> None:
        """Take note of tensors, of which nothing is in memory yet."""
        sizes = None if file.suffix == ".safetensors" else _record_sizes(file)
        state, metadata = _load(file, self.key)
        self.metadata |= metadata
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
            # Floats of a byte or less are quantised: their scales lie in other tensors.
            quantised = value.is_quantized or (value.is_floating_point() and value.itemsize < 2)
            if quantised or value.is_nested or value.layout != torch.strided:
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
            names.setdefault(self._file_of[name], []).append(name)
        states: dict[Path, dict[Any, Any]] = {}
        for name, group in groupby(pieces, lambda piece: piece[0]):
            file = self._file_of[name]
            with reading(file):
                if file not in states:
                    states[file] = _load(file, self.key, names[file])[0]
                flat = states[file][name].detach().reshape(-1)
            for _, low, high in group:
                yield flat[low:high]

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
            whole = within = _torch_load(file)
            beside: list[str] = []
            *above, last = self.key.split(".")
            for part in above:
                beside += [str(name) for name in within if name != part]
                within = within[part]
            beside += [str(name) for name in within if name != last]
            within[last] = state
        return whole, beside


def _load(
    file: Path, key: str, names: Sequence[str] | None = None
) -> tuple[dict[Any, Any], dict[str, str]]:
    """Return a file's mapped state dict, with these names at the least, and its text metadata."""
    if file.suffix == ".safetensors":
        with safetensors_library().safe_open(file, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in names or opened.keys()}
            return state, opened.metadata() or {}
    state = _torch_load(file)
    for part in key.split(".") if key else ():
        held = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        if not isinstance(state, dict) or part not in state:
            raise CheckpointError(f"{file}: key {key!r}: no {part!r} in {held:.200}")
        state = state[part]
    if not isinstance(state, dict) or not state:
        where = f" at {key!r}" if key else ""
        raise CheckpointError(f"{file}: no state dict{where}: {type(state).__name__}")
    return state, {}


def _no_tensor(file: Path, key: str, state: dict[Any, Any], name: Any) -> str:
    value = state[name]
    under = f"{key}." if key else ""
    if isinstance(value, dict):
        return f"{file}: {name!r} is a dict: give it as key? ({under}{name})"
    said = f"{file}: {name!r} is not a tensor but {type(value).__name__}: {value!r:.50}"
    for other, held in state.items():
        if isinstance(held, dict) and held and all(isinstance(x, Tensor) for x in held.values()):
            return f"{said}: is the state dict at key {under}{other}?"
    return said


def _torch_load(file: Path) -> Any:
    """Return what `torch.save` wrote, mapped. Nothing that a file holds is executed."""
    with torch.serialization.safe_globals(PLAIN):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            # Its text advises to load the file without any check.
            try:
                unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
            except pickle.UnpicklingError:
                unsafe = []
            if not unsafe:
                said = "it is damaged, or not pickled as torch.save does: torch.save it again"
                raise ValueError(said) from error
            raise ValueError(
                f"it holds {', '.join(unsafe)}, which is no plain data, and nothing of a file is "
                "executed: load it where it was made, and torch.save its state dict alone"
            ) from error


def _record_sizes(file: Path) -> Counter[int]:
    """Count the sizes in bytes of a torch file's records, if they can be mapped as they are."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                archive.open(entry).close()  # checks its header, which the map passes over
    except zipfile.BadZipFile as error:
        old = "it is damaged, or in torch's old format: torch.save it again"
        raise ValueError(old) from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError("it is a TorchScript archive: torch.save its module's state dict")
    if any(entry.compress_type for entry in entries):
        raise ValueError("it is compressed, so it cannot be mapped: torch.save it again")
    return Counter(entry.file_size for entry in entries)


def safetensors_library() -> Any:
    """Return the library, or say what brings it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors is missing: pip install 'lawa-opt[files]'") from error
    return safetensors


def check_same_structure(one: Checkpoint, other: Checkpoint) -> None:
    """Refuse checkpoints with other names, shapes or dtypes."""
    for a, b in ((one, other), (other, one)):
        if extra := a.tensors.keys() - b.tensors.keys():
            raise CheckpointError(f"{b.path} lacks {min(extra, key=str)!r}, which {a.path} has")
    for name, x in one.tensors.items():
        y = other.tensors[name]
        for what, here, there in (("shape", x.shape, y.shape), ("dtype", x.dtype, y.dtype)):
            if here != there:
                seen = f"{here} in {one.path} and {there} in {other.path}"
                raise CheckpointError(f"the {what} of {name!r} differs: {seen}")
