"""What a file of weights holds, mapped, and what it says beside."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lawa_opt.averaging_files.find import CheckpointError, fingerprint, reading
from lawa_opt.averaging_files.plain_data import PLAIN, configs_among
from lawa_opt.averaging_files.steps import steps_in

# Under this name an average says what it was made of: in safetensors' metadata, beside a nested
# state dict, or as an attribute of a flat one, which may have no entry that is no tensor.
PROVENANCE = "lawa_opt"


class Loaded(NamedTuple):
    """A file's mapped state dict, and what the file says beside it."""

    state: dict[Any, Any]
    metadata: dict[str, str]
    steps: dict[str, int]
    provenance: str | None


def load(file: Path, key: str, names: Sequence[str] | None = None) -> Loaded:
    """Return what a file holds, of the state dict these names at the least."""
    if file.suffix == ".safetensors":
        with safetensors_library().safe_open(file, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in names or opened.keys()}
            metadata = opened.metadata() or {}
            provenance = metadata.pop(PROVENANCE, None)
            return Loaded(state, metadata, steps_in(metadata), provenance)
    whole = state = torch_load(file)
    for part in key.split(".") if key else ():
        held = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        if not isinstance(state, dict) or part not in state:
            raise CheckpointError(f"{file}: key {key!r}: no {part!r} in {held:.200}")
        state = state[part]
    if not isinstance(state, dict) or not state:
        where = f" at {key!r}" if key else ""
        raise CheckpointError(f"{file}: no state dict{where}: {type(state).__name__}")
    return Loaded(state, {}, steps_in(whole) if key else {}, _provenance_of(whole))


def _provenance_of(whole: Any) -> str | None:
    held = getattr(whole, PROVENANCE, None)
    if held is None and isinstance(whole, dict):
        held = whole.get(PROVENANCE)
    return held if isinstance(held, str) else None


def provenance_in(file: Path) -> tuple[str | None, bool]:
    """Return what a file says of its sources, if lawa_opt wrote it, and whether it nests."""
    with reading(file):
        fingerprint(file)
        if file.suffix == ".safetensors":
            with safetensors_library().safe_open(file, "pt") as opened:
                return (opened.metadata() or {}).get(PROVENANCE), False
        whole = torch_load(file)
        return _provenance_of(whole), isinstance(whole, dict) and PROVENANCE in whole


def torch_load(file: Path) -> Any:
    """Return what `torch.save` wrote, mapped. Nothing that a file holds is executed."""
    try:
        return _mapped(file, PLAIN)
    except pickle.UnpicklingError as error:
        # Its text advises to load the file without any check.
        unsafe = _other_classes(file, PLAIN)
        if configs := configs_among(unsafe):
            unsafe = _other_classes(file, [*PLAIN, *configs])
            if not unsafe:
                return _mapped(file, [*PLAIN, *configs])
        if not unsafe:
            said = "it is damaged, or not pickled as torch.save does: torch.save it again"
            raise ValueError(said) from error
        raise ValueError(
            f"it holds {', '.join(unsafe)}, which is no plain data, and nothing of a file is "
            "executed: load it where it was made, and torch.save its state dict alone"
        ) from error


def _mapped(file: Path, classes: list[Any]) -> Any:
    with torch.serialization.safe_globals(classes):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _other_classes(file: Path, classes: list[Any]) -> list[str]:
    """Return the names of the classes in a file beside these and torch's own."""
    with torch.serialization.safe_globals(classes):
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
        except pickle.UnpicklingError:
            return []


def record_sizes(file: Path) -> Counter[int]:
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
