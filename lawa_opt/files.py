"""Checkpoint files: read mapped, a part at a time, and written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.plain import PLAIN

Piece = tuple[Any, int, int]  # a tensor's name, its first element and the end of the piece


TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# In a folder, the first two go before all others, as the frameworks have it.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
DISTRIBUTED = (
    "is of torch.distributed.checkpoint: make its folder one file by dcp_to_torch_save of "
    "torch.distributed.checkpoint.format_utils"
)
# Tensors may share what a file holds (tied, expanded), but not claim so many bytes beyond it.
MOST_EXPANDED_BYTES = 1 << 30


class CheckpointError(ValueError):
    """A checkpoint that cannot be averaged or written; the message names the file and the cause."""


def find_files(path: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """Return the index of a checkpoint, if it has one, and its files with the names to take.

    Names are given by an index alone; without them, all that a file holds is taken.
    """
    with _reading(path):
        if path.is_dir():
            path = _weights_in(path)
        if path.suffix == ".distcp" or path.name == ".metadata":
            raise CheckpointError(f"{path} {DISTRIBUTED}")
        if path.suffix != ".json":
            return None, {path: []}
    with _reading(path):
        stamp(path)
        held = json.loads(path.read_text(encoding="utf-8"))
        shards = held.get("weight_map") if isinstance(held, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise ValueError("it has no weight_map that names files, so it is no index of shards")
        files: dict[Path, list[str]] = {}
        for name, shard in shards.items():
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
                raise CheckpointError(
                    f"{path} puts {name!r} in {shard!r:.200}, which is no file's name: shards lie "
                    "beside their index"
                )
            files.setdefault(path.with_name(shard), []).append(name)
        return path, files


def _weights_in(folder: Path) -> Path:
    held = [folder / name for name in WEIGHTS_FILES if (folder / name).exists()]
    if not held and (folder / ".metadata").exists():
        raise CheckpointError(f"{folder} {DISTRIBUTED}")
    if not held:
        names = [name for name in WEIGHTS_FILES if not name.endswith(".json")]
        raise CheckpointError(f"{folder} holds neither {', '.join(names)} nor an index of such")
    if len(held) > 1 and held[0].name not in WEIGHTS_FILES[:2]:
        raise CheckpointError(f"{folder} holds {held[0].name} and {held[1].name}: give one of them")
    return held[0]


class Checkpoint:
    """The tensors of a safetensors or torch file, or of the shards that an index names.

    Attributes:
        source: the file, or the index.
        tensors: names to meta tensors, which carry shape and dtype.
        ties: each name that stands for an earlier name's tensor, to that name.
        metadata: the text entries of safetensors headers.
        stamps: what tells that a file was changed.
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
        self.stamps = {file: stamp(file) for file in (*([index] if index else []), *files)}
        for file, names in files.items():
            with _reading(file):
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
        claimed, held = sum(apart.values()), sum(size for _, _, size, _ in self.stamps.values())
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
        refuse_changed(self)
        names: dict[Path, list[Any]] = {}
        for name, _ in groupby(pieces, lambda piece: piece[0]):
            names.setdefault(self._file_of[name], []).append(name)
        states: dict[Path, dict[Any, Any]] = {}
        for name, group in groupby(pieces, lambda piece: piece[0]):
            file = self._file_of[name]
            with _reading(file):
                if file not in states:
                    states[file] = _load(file, self.key, names[file])[0]
                flat = states[file][name].detach().reshape(-1)
            for _, low, high in group:
                yield flat[low:high]

    def put_in_place(self, state: dict[Any, Tensor]) -> tuple[Any, list[str]]:
        """Return the checkpoint with another state dict at its key, and what lies beside that."""
        if not self.key:
            return state, []
        (file,) = self.stamps
        with _reading(file):
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
        with _safetensors().safe_open(file, "pt") as opened:
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


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors is missing: pip install 'lawa-opt[files]'") from error
    return safetensors


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Refuse files that are not what they were when the checkpoint was opened."""
    for file, before in checkpoint.stamps.items():
        if stamp(file) != before:
            raise CheckpointError(f"{file} changed while it was read")


def refuse_names(target: Path, tensors: dict[Any, Tensor]) -> None:
    """Refuse names and dtypes that a safetensors file would not give back."""
    library = _safetensors().torch
    for name, tensor in tensors.items():
        probe = {name: torch.empty(1, dtype=tensor.dtype)}
        try:
            held = library.load(library.save(probe)).keys() == probe.keys()
        except Exception:  # of many types, by the name or dtype and the library's version
            held = False
        if not held:
            raise CheckpointError(
                f"{target} cannot hold {name!r}, which is {tensor.dtype}: safetensors has no such "
                "name or dtype, so write a .pt file"
            )


def write_safetensors(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a state dict that the library can read back."""
    library = _safetensors()
    try:
        library.torch.save_file(state, file, metadata)
        with library.safe_open(file, "pt"):
            pass
    except library.SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise CheckpointError(f"the average is no safetensors file: {error}") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the target's name when whole, and else is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # the umask's, where safetensors made its own file
        with temporary.open("rb+") as file:
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
    """Name the file and the reason in one line, whatever goes wrong in reading."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what is then refused
            yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
        reason = reason.splitlines()[0].partition(". ")[0]
        raise CheckpointError(f"{file} cannot be read: {reason}") from error


def stamp(file: Path) -> tuple[int, int, int, int]:
    """Return what identifies a file (device, inode) and changes with it (size, time in ns)."""
    with _reading(file):
        seen = file.stat()
        if not stat.S_ISREG(seen.st_mode):
            # To open a FIFO would wait for its writer.
            raise ValueError("it is no regular file but a folder, FIFO, socket or device")
        return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
