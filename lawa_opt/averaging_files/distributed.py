"""Folders of torch.distributed.checkpoint (DCP), read a chunk at a time on one process."""

from __future__ import annotations

import importlib
import io
import pickle
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import DCP_INDEX, CheckpointError, fingerprint, reading
from lawa_opt.averaging_files.read import Checkpoint, Piece, is_quantised
from lawa_opt.averaging_files.steps import IN_FILES, steps_in

_DCP = "torch.distributed.checkpoint"
_KINDS = (
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
# All that an index may name: records without behaviour, and torch's constants.
_RECORDS = {
    *((f"{_DCP}.metadata", kind) for kind in _KINDS),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    *(("pathlib", kind) for kind in ("PosixPath", "PurePosixPath")),
    *(("pathlib._local", kind) for kind in ("PosixPath", "PurePosixPath")),
}
# Where a training loop keeps its step beside its states.
_STATES_OF_LOOPS = ("train_state", "trainer")


class _Records(pickle.Unpickler):
    """An unpickler of DCP's indexes, which makes nothing but records."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _RECORDS:
            raise ValueError(f"it holds {module}.{name}, which no index needs, so nothing is read")
        return getattr(importlib.import_module(module), name)


class _Chunk(NamedTuple):
    """A box of a tensor, and where in which file it is saved."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


class DistributedCheckpoint(Checkpoint):
    """The tensors of a DCP folder, however many ranks have written it."""

    def _scan_all(self, files: dict[Path, list[str]]) -> None:  # noqa: ARG002 (the index has them)
        self._chunks: dict[Any, list[_Chunk]] = {}
        self.left_out: list[str] = []
        with reading(self.source):
            with self.source.open("rb") as file:
                index = _Records(file).load()
            stored: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
            for place, info in index.storage_data.items():
                if getattr(info, "transform_descriptors", None):
                    raise ValueError("it is compressed: save it again without extensions")
                stored[place.fqn].append((place, info))
            paths = index.planner_data if isinstance(index.planner_data, dict) else {}
            wanted = tuple(self.key.split(".")) if self.key else ()
            entries = {name: tuple(paths.get(name, (name,))) for name in index.state_dict_metadata}
            if wanted and not paths:
                start = f"{self.key}."
                entries = {
                    name: (*wanted, name.removeprefix(start)) if name.startswith(start) else (name,)
                    for name in entries
                }
            at_key = {full: path for full, path in entries.items() if path[: len(wanted)] == wanted}
            self._refuse_no_state(entries, at_key, wanted)
            for full, path in at_key.items():
                self._note(path[-1], index.state_dict_metadata[full], stored[full], full)
            self.left_out = sorted({str(path[0]) for f, path in entries.items() if f not in at_key})
            self.steps_inside = self._steps(entries, stored, wanted)
        used = {chunk.file for chunks in self._chunks.values() for chunk in chunks}
        self.fingerprints = {file: fingerprint(file) for file in (self.source, *sorted(used))}
        for chunks in self._chunks.values():
            for chunk in chunks:
                with reading(chunk.file):
                    if chunk.start + chunk.length > self.fingerprints[chunk.file][2]:
                        raise ValueError("it is shorter than its index says")

    def _refuse_no_state(
        self,
        entries: dict[str, tuple[Any, ...]],
        at_key: dict[str, tuple[Any, ...]],
        wanted: tuple[str, ...],
    ) -> None:
        deep = [path for path in at_key.values() if len(path) != len(wanted) + 1]
        if at_key and not deep:
            return
        under = f"{self.key}." if self.key else ""
        if deep:
            keys = sorted(
                {f"{under}{path[len(wanted)]}" for path in deep if len(path) > len(wanted)}
            )
            said = f"it nests state dicts: give the one of the weights as key ({', '.join(keys)})"
            raise CheckpointError(f"{self.path}: {said}")
        held = ", ".join(sorted({str(path[0]) for path in entries.values()}))
        raise CheckpointError(f"{self.path}: key {self.key!r}: no such key in {held:.200}")

    def _note(self, name: Any, like: Any, stored: list[tuple[Any, Any]], full: str) -> None:
        """Take note of a tensor and of its chunks."""
        if not hasattr(like, "chunks"):
            raise CheckpointError(f"{self.path}: {full!r} is not a tensor")
        tensor = torch.empty(like.size, dtype=like.properties.dtype, device="meta")
        if is_quantised(tensor):
            raise CheckpointError(f"{self.path}: {full!r} is quantised: {tensor.dtype}")
        sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in like.chunks}
        chunks = []
        for place, info in stored:
            offsets = tuple(place.offset) if place.offset is not None else (0,) * tensor.dim()
            if Path(info.relative_path).name != info.relative_path:
                said = f"{info.relative_path!r:.200}, which is no file's name"
                raise CheckpointError(f"{self.source} puts {full!r} in {said}")
            file = self.source.with_name(info.relative_path)
            chunks.append(_Chunk(offsets, sizes[offsets], file, info.offset, info.length))
        if sum(prod(chunk.sizes) for chunk in chunks) != tensor.numel():
            raise ValueError(f"it is damaged: the chunks of {full!r} do not make its shape")
        self.tensors[name] = tensor
        self._chunks[name] = chunks

    def _steps(
        self, entries: dict[str, tuple[Any, ...]], stored: Any, wanted: tuple[str, ...]
    ) -> dict[str, int]:
        """Return what the loop that wrote it calls its step, above or beside the weights."""
        found = {}
        for full, path in entries.items():
            above = path[:-1]
            if path[-1] in IN_FILES and (
                above == wanted[: len(above)] != wanted or above in ((s,) for s in _STATES_OF_LOOPS)
            ):
                ((_, info),) = stored[full]
                file = self.source.with_name(Path(info.relative_path).name)
                found[path[-1]] = _load_at(file, info.offset, info.length)
        return steps_in(found)

    def read(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Yield the pieces as flat tensors, of which a chunk at a time is in memory."""
        self.refuse_changed()
        for name, group in groupby(pieces, lambda piece: piece[0]):
            spans = [(low, high) for _, low, high in group]
            like = self.tensors[name]
            row = max(1, prod(like.shape[1:]))
            first, end = spans[0][0] // row, -(-spans[-1][1] // row)
            flat = self._rows(name, first, end).view(-1)
            for low, high in spans:
                yield flat[low - first * row : high - first * row]

    def _rows(self, name: Any, first: int, end: int) -> Tensor:
        """Return some of a tensor's rows, put together from the chunks that have them."""
        like = self.tensors[name]
        if not like.dim():
            return self._chunk(self._chunks[self._stored[name]][0], like.dtype)
        rows: Tensor | None = None
        for chunk in self._chunks[self._stored[name]]:
            start = chunk.offsets[0]
            low, high = max(first, start), min(end, start + chunk.sizes[0])
            if low >= high:
                continue
            part = self._chunk(chunk, like.dtype)[low - start : high - start]
            if part.shape == (end - first, *like.shape[1:]):
                return part.contiguous()
            if rows is None:
                # As NaN, what damaged chunks leave open is not taken for a value.
                rows = torch.full(
                    (end - first, *like.shape[1:]),
                    float("nan") if like.is_floating_point() else 0,
                    dtype=like.dtype,
                )
            place = [slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True)]
            rows[(slice(low - first, high - first), *place[1:])] = part
        if rows is None:
            return torch.empty((end - first, *like.shape[1:]), dtype=like.dtype)
        return rows

    def _chunk(self, chunk: _Chunk, dtype: torch.dtype) -> Tensor:
        with reading(chunk.file):
            tensor = _load_at(chunk.file, chunk.start, chunk.length)
            if not isinstance(tensor, Tensor):
                raise ValueError(f"it is damaged: a tensor is {type(tensor).__name__}")
            if (tuple(tensor.shape), tensor.dtype) != (chunk.sizes, dtype):
                raise ValueError("it is damaged: a chunk has not the shape that the index has")
            return tensor.detach()

    def put_in_place(self, state: dict[Any, Tensor]) -> tuple[Any, list[str]]:
        """Return the state dict alone: what lies beside it in DCP is too large to go along."""
        return state, []


class _Slice(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: Any, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._start + self._at)
        count: int = self._file.readinto(view[: max(0, self._length - self._at)])
        self._at += count
        return count


def _load_at(file: Path, start: int, length: int) -> Any:
    """Return what `torch.save` wrote into a part of a file. Nothing that it holds is executed."""
    with file.open("rb") as opened:
        if start < 0 or length < 0 or start + length > file.stat().st_size:
            raise ValueError("it is shorter than its index says")
        part: Any = _Slice(opened, start, length)
        return torch.load(part, map_location="cpu", weights_only=True)


def open_checkpoint(path: Path, key: str = "", strip_prefix: Sequence[str] = ()) -> Checkpoint:
    """Open a checkpoint of any kind."""
    folder = path if path.is_dir() else path.parent
    with reading(path):
        is_dcp = path.name == DCP_INDEX or (path.is_dir() and (folder / DCP_INDEX).exists())
    return (DistributedCheckpoint if is_dcp else Checkpoint)(path, key, strip_prefix)
