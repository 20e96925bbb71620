"""What checkpoints must have in common, and which prefixes keep them apart."""

from __future__ import annotations

from collections.abc import Sequence

from lawa_opt.averaging_files.find import CheckpointError
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
