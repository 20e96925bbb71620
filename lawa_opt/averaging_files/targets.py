"""Where an average goes: one file, a folder as Hugging Face has it, or a DCP folder."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lawa_opt.averaging_files.distributed import DistributedCheckpoint
from lawa_opt.averaging_files.find import TORCH_SUFFIXES, CheckpointError
from lawa_opt.averaging_files.folders import COMPANIONS, IN_FOLDERS
from lawa_opt.averaging_files.load import PROVENANCE
from lawa_opt.averaging_files.mean import Mean
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.averaging_files.write import refuse_names, write_safetensors
from lawa_opt.averaging_files.write_distributed import write_distributed
from lawa_opt.messages import ArgumentError

FORMATS = ("safetensors", "pt", "hf", "dcp")
# Of a folder, these are weights or of the training, and not the model's description.
NOT_COPIED = (
    ".safetensors",
    ".distcp",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".lock",
    ".index.json",
)


def format_of(target: Path, asked: str | None) -> str | None:
    """Return the format of a target by its suffix, or None for a folder that may be either.

    Raises:
        ArgumentError: the suffix is of no format, or not of the one that was asked for.
    """
    if asked is not None and asked not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}: {asked!r}")
    suffix = target.suffix
    by_suffix = "safetensors" if suffix == ".safetensors" else None
    by_suffix = "pt" if suffix in TORCH_SUFFIXES else by_suffix
    if by_suffix is None and (asked in ("safetensors", "pt") or not str(target).strip("./")):
        raise ArgumentError(f"{target} must end in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    if by_suffix is not None and asked not in (None, by_suffix):
        raise ArgumentError(f"{target} is a file, and format {asked} is a folder")
    if by_suffix is None and suffix in (".zip", ".json", ".npz", ".h5", ".gguf", ".onnx"):
        raise ArgumentError(f"{target} must end in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    return by_suffix or asked


def format_as(newest: Checkpoint) -> str:
    """Return the format of a folder that is laid out as the newest checkpoint is.

    Raises:
        CheckpointError: that is no folder.
    """
    if isinstance(newest, DistributedCheckpoint):
        return "dcp"
    if newest.path.is_dir() or newest.source not in newest.files:
        return "hf"
    raise CheckpointError(
        f"a folder is laid out as the newest checkpoint, and {newest.path} is a file: name a file "
        "to write, such as average.safetensors, or say --format hf or dcp"
    )


def write(kind: str, mean: Mean, place: Path, key: str, provenance: Callable[[], str]) -> list[str]:
    """Write the mean into a temporary file or folder; return notes on what was copied or left out.

    Args:
        kind: one of the formats.
        mean: what to write.
        place: where to.
        key: where the state dict lies in the sources.
        provenance: waits for what the average says of itself, and returns it.
    """
    if kind == "safetensors":
        state = mean.state(tied=False)
        metadata = {"format": "pt"} | mean.newest.metadata | {PROVENANCE: provenance()}
        write_safetensors(state, place, metadata)
        return []
    if kind == "pt":
        return _write_torch(mean, place, key, provenance())
    notes = (
        _write_hugging_face(mean, place) if kind == "hf" else write_distributed(mean, place, key)
    )
    (place / IN_FOLDERS).write_text(provenance() + "\n", encoding="utf-8")
    return notes


def _write_torch(mean: Mean, file: Path, key: str, provenance: str) -> list[str]:
    state = OrderedDict(mean.state(tied=True))
    whole, kept = mean.newest.put_in_place(state)
    if whole is state:
        # An entry would be one too many for load_state_dict; weights_only reads an attribute too.
        setattr(state, PROVENANCE, provenance)
    else:
        whole[PROVENANCE] = provenance
    with file.open("wb") as opened:
        torch.save(whole, opened)
    mean.refuse_changed()
    return [f"kept from {mean.newest.source} beside {key}: {', '.join(kept)}"] if kept else []


def _write_hugging_face(mean: Mean, folder: Path) -> list[str]:
    """Write shards and index as the newest has them, and copy what describes the model."""
    newest = mean.newest
    shards: dict[str, list[Any]] = {}
    if isinstance(newest, DistributedCheckpoint) or not newest.is_folder:
        shards = {"model.safetensors": [*mean.layout]}
    else:
        for name in mean.layout:
            shards.setdefault(newest.file_of(name).name, []).append(name)
    for shard, names in shards.items():
        place = folder / shard
        if place.suffix == ".safetensors":
            refuse_names(place, {name: mean.layout[name] for name in names})
            write_safetensors(mean.state(names, tied=False), place, {"format": "pt"})
        else:
            torch.save(mean.state(names, tied=True), place)
    if newest.source not in newest.files and not isinstance(newest, DistributedCheckpoint):
        index = json.loads(newest.source.read_text(encoding="utf-8"))
        index["weight_map"] = {name: s for s, names in shards.items() for name in names}
        size = sum(like.nbytes for like in mean.layout.values())
        index["metadata"] = (index.get("metadata") or {}) | {"total_size": size}
        (folder / newest.source.name).write_text(json.dumps(index, indent=2) + "\n")
    if isinstance(newest, DistributedCheckpoint) or not newest.is_folder:
        return []
    return _copy_description(newest.source.parent, folder, mean)


def _copy_description(source: Path, folder: Path, mean: Mean) -> list[str]:
    copied, left = [], []
    for path in sorted(source.iterdir()):
        name = path.name
        if path.is_dir():
            left.append(f"{name}/")
        elif name.startswith((*COMPANIONS, ".", "trainer_state", IN_FOLDERS)):
            continue
        elif path.is_file() and not name.endswith((*NOT_COPIED, *TORCH_SUFFIXES)):
            shutil.copyfile(path, folder / name)
            copied.append(name)
    notes = [f"copied from {source}: {', '.join(copied)}"] if copied else []
    if left:
        notes.append(f"not copied from {source}: {', '.join(left)}")
    dtypes = {like.dtype for like in mean.layout.values() if like.is_floating_point()}
    before = {like.dtype for like in mean.newest.tensors.values() if like.is_floating_point()}
    config = folder / "config.json"
    if dtypes != before and config.is_file():
        held = json.loads(config.read_text(encoding="utf-8"))
        (dtype,) = dtypes
        for field in {"dtype", "torch_dtype"} & held.keys():
            held[field] = str(dtype).removeprefix("torch.")
            notes.append(f"config.json now says {field} {held[field]}")
        config.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    return notes
