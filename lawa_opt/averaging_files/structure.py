"""What checkpoints must have in common, and which prefixes keep them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lawa_opt.averaging_files.find import CheckpointError, reading
from lawa_opt.averaging_files.read import Checkpoint

# What wrappers put before names: DDP, torch.compile, both, and a module that has the model inside.
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.")


def check_same_structure(one: Checkpoint, other: Checkpoint) -> None:
    """Refuse checkpoints with other names, shapes or dtypes."""
    for a, b in ((one, other), (other, one)):
        if extra := a.tensors.keys() - b.tensors.keys():
            said = f"{b.path} lacks {min(extra, key=str)!r}, which {a.path} has"
            raise CheckpointError(f"{said}{_prefix_between(a, b) or _prefix_between(b, a)}")
    for name, x in one.tensors.items():
        y = other.tensors[name]
        for what, here, there in (("shape", x.shape, y.shape), ("dtype", x.dtype, y.dtype)):
            if here != there:
                seen = f"{here} in {one.path} and {there} in {other.path}"
                raise CheckpointError(f"the {what} of {name!r} differs: {seen}")


def _prefix_between(bare: Checkpoint, wrapped: Checkpoint) -> str:
    """Say which prefixes to strip, if that is all in which names differ."""
    for prefix in PREFIXES:
        if {f"{prefix}{name}" for name in bare.tensors} == wrapped.tensors.keys():
            parts = prefix.removesuffix(".").split(".")
            options = " ".join(f"--strip-prefix {part}." for part in parts)
            return f": {wrapped.path} has all of them behind {prefix!r}: {options}"
    return ""


def refuse_idle_prefixes(checkpoints: Sequence[Checkpoint], prefixes: Sequence[str]) -> None:
    """Refuse prefixes to strip that no name has, with those that all names have."""
    for prefix in prefixes:
        if not any(prefix in checkpoint.stripped for checkpoint in checkpoints):
            names = [str(name) for name in checkpoints[-1].tensors]
            common = [p for p in PREFIXES if all(name.startswith(p) for name in names)]
            offered = f"; all begin with {common[0]!r}" if common else ""
            raise CheckpointError(
                f"no name begins with {prefix!r}, as {', '.join(map(repr, names[:3]))}{offered}"
            )


# What scales the product of an adapter's matrices.
SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
# What says where a configuration comes from, and not what it is.
ORIGINS = ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version")


def notes_on_descriptions(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return what the reader should know of adapters, and of configurations that differ.

    Raises:
        CheckpointError: adapters scale their matrices differently, so that these have no mean.
    """
    newest, notes = checkpoints[-1], []
    if any("lora_" in str(name) for name in newest.tensors):
        notes.append(
            "lora_A and lora_B are averaged apart, into an adapter of the same rank: this is not "
            "the mean of their products"
        )
    for file in ("config.json", "adapter_config.json"):
        held = [_read_json(each, file) for each in checkpoints]
        for checkpoint, config in zip(checkpoints, held, strict=True):
            names = sorted(
                name
                for name in (config.keys() | held[-1].keys()) - {*ORIGINS}
                if config and held[-1]
                if config.get(name) != held[-1].get(name)
            )
            if file == "adapter_config.json":
                names = [name for name in names if name in SCALES] or names
            if names:
                said = f"{checkpoint.path} and {newest.path} differ in {', '.join(names)} of {file}"
                if file == "adapter_config.json" and {*SCALES} & {*names}:
                    raise CheckpointError(
                        f"{said}, by which their matrices are scaled: merge each into its base "
                        "model, and average those"
                    )
                notes.append(said)
    return notes


def _read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    file = checkpoint.source.parent / name
    if not checkpoint.is_folder or not file.is_file():
        return {}
    with reading(file):
        held = json.loads(file.read_text(encoding="utf-8"))
        return held if isinstance(held, dict) else {}
