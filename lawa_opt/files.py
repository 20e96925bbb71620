"""Checkpoint files: read piece by piece, and written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    Piece = tuple[str, int, int]  # a tensor's name, its first element and the end of the piece

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Floats of a byte or less are left out: they are quantised, their scales lie in other tensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint that cannot be averaged or written; the message names the file and the cause."""


class SafetensorsCheckpoint:
    """A safetensors file, or the shards that an index names, read by offset.

    Reading through the library would map the files, and what is read of a mapping counts as this
    process's memory until it is unmapped.

    Attributes:
        tensors: names to meta tensors, which carry shape and dtype.
        ties: empty, since a safetensors file holds every tensor apart.
        metadata: the headers' text entries.
        stamps: what tells that a file was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.ties: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.stamps: dict[Path, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        if path.is_dir():
            whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
            path = whole if whole.exists() else index
            if not path.exists():
                raise CheckpointError(f"{self.path} holds neither {whole.name} nor {index.name}")
        if path.suffix != ".json":
            self._scan(path)
            return
        with _reading(path):
            self.stamps[path] = _stamp(path)
            shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            names: dict[str, list[str]] = {}
            for name, shard in shards.items():
                names.setdefault(shard, []).append(name)
            for shard, wanted in names.items():
                self._scan(path.parent / shard, wanted)

    def _scan(self, file: Path, wanted: list[str] | None = None) -> None:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError("safetensors is missing: pip install 'lawa-opt[files]'") from error
        with _reading(file):
            self.stamps[file] = _stamp(file)
            # The library refuses a bad header, and a file shorter or longer than its header says.
            with safe_open(file, "pt") as opened:
                self.metadata |= opened.metadata() or {}
            with file.open("rb") as raw:
                size = int.from_bytes(raw.read(8), "little")
                header = json.loads(raw.read(size))
            header.pop("__metadata__", None)
            for name in header if wanted is None else wanted:
                if name not in header:
                    raise CheckpointError(f"{file} lacks {name!r}, which the index names")
                shape, code = header[name]["shape"], header[name]["dtype"]
                if code not in DTYPES:
                    raise CheckpointError(f"{file}: {name!r} is quantised or unknown: {code}")
                self.tensors[name] = torch.empty(shape, dtype=DTYPES[code], device="meta")
                self._places[name] = (file, 8 + size + header[name]["data_offsets"][0])

    def read(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Yield the pieces as flat tensors, each good until the next."""
        buffer = memoryview(bytearray(max(high - low for _, low, high in pieces) * 8))
        views: dict[tuple[torch.dtype, int], tuple[memoryview, Tensor]] = {}
        for file, group in groupby(pieces, lambda piece: self._places[piece[0]][0]):
            with _reading(file), file.open("rb", buffering=0) as raw:
                for name, low, high in group:
                    dtype = self.tensors[name].dtype
                    if (view := views.get((dtype, high - low))) is None:
                        place = buffer[: (high - low) * dtype.itemsize]
                        view = (place, torch.frombuffer(place, dtype=dtype))
                        views[dtype, high - low] = view
                    place, tile = view
                    raw.seek(self._places[name][1] + low * dtype.itemsize)
                    if raw.readinto(place) != len(place):
                        raise CheckpointError(f"{file} changed while it was read")
                    yield tile


class TorchCheckpoint:
    """A file of `torch.save`, mapped, and read with `weights_only=True`.

    Attributes:
        tensors: names to meta tensors, which carry shape and dtype.
        ties: each name that stands for an earlier name's tensor, to that name.
        metadata: empty.
        stamps: what tells that the file was changed.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.tensors: dict[str, Tensor] = {}
        self.ties: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        with _reading(path):
            self.stamps = {path: _stamp(path)}
        self._first: dict[str, Any] | None = self._load()  # nothing of it is in memory yet
        first: dict[Any, str] = {}
        for name, value in self._first.items():
            if isinstance(value, dict):
                nested = f"{key}.{name}" if key else name
                raise CheckpointError(f"{path}: {name!r} is a dict: give it as key? ({nested})")
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise CheckpointError(f"{path}: {name!r} is not a tensor but {kind}: {value!r:.50}")
            quantised = value.is_quantized or (value.is_floating_point() and value.itemsize < 2)
            if quantised or value.layout != torch.strided:
                kind = f"{value.dtype}, {value.layout}"
                raise CheckpointError(f"{path}: {name!r} is quantised or sparse: {kind}")
            self.tensors[name] = value.detach().to("meta")
            place = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if value.numel() and first.setdefault(place, name) != name:
                self.ties[name] = first[place]

    def _load(self) -> dict[str, Any]:
        with _reading(self.path):
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        for part in self.key.split(".") if self.key else ():
            held = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
            if not isinstance(state, dict) or part not in state:
                raise CheckpointError(f"{self.path}: key {self.key!r}: no {part!r} in {held:.200}")
            state = state[part]
        if not isinstance(state, dict) or not state:
            where = f" at {self.key!r}" if self.key else ""
            raise CheckpointError(f"{self.path}: no state dict{where}: {type(state).__name__}")
        return state

    def read(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Yield the pieces as flat tensors, which keep the file mapped."""
        refuse_changed(self)
        state, self._first = self._first or self._load(), None
        for name, group in groupby(pieces, lambda piece: piece[0]):
            flat = state[name].detach().reshape(-1)
            for _, low, high in group:
                yield flat[low:high]


Checkpoint = SafetensorsCheckpoint | TorchCheckpoint


def open_checkpoint(path: Path, key: str = "") -> Checkpoint:
    """Read the names, shapes and dtypes of a checkpoint of either kind."""
    if not path.is_dir() and path.suffix not in (".safetensors", ".json"):
        return TorchCheckpoint(path, key)
    if key:
        raise CheckpointError(f"{path}: safetensors files do not nest, so there is no key {key!r}")
    return SafetensorsCheckpoint(path)


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Refuse files that are not what they were when the checkpoint was opened."""
    for file, stamp in checkpoint.stamps.items():
        with _reading(file):
            if _stamp(file) != stamp:
                raise CheckpointError(f"{file} changed while it was read")


def write_safetensors(
    file: BinaryIO,
    layout: dict[str, Tensor],
    metadata: dict[str, str],
    tiles: Iterable[tuple[Piece, Tensor]],
) -> None:
    """Write tiles that come in the order of the layout.

    The library writes only what is all in memory, so this follows the format's specification:
    length of the header, header in JSON, tensors without gaps.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, like in layout.items():
        begin, end = end, end + like.nbytes
        code, shape = CODES[like.dtype], list(like.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for (name, _, _), mean in tiles:
        dtype = layout[name].dtype
        rounded = bytearray(mean.numel() * dtype.itemsize)
        torch.frombuffer(rounded, dtype=dtype).copy_(mean)
        file.write(rounded)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A temporary file beside the target that takes its name when whole, and else is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch.save hides a failed write behind a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever goes wrong in reading, name the file and the reason in one line."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
        if reason.startswith("mmap can only be used"):
            reason = "it is damaged, or in torch's old format: torch.save it again"
        lines = reason.splitlines()
        refused = (line.partition("Unpickler error: ")[2] or line for line in lines)
        reason = next((line for line in refused if "nsupported" in line), lines[0])
        reason = reason.partition(". ")[0]
        raise CheckpointError(f"{file} cannot be read: {reason}") from error


def _stamp(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)
