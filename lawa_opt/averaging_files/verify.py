"""An average made again from the sources that it names, and compared bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.distributed import open_checkpoint
from lawa_opt.averaging_files.find import CheckpointError, reading
from lawa_opt.averaging_files.folders import IN_FOLDERS
from lawa_opt.averaging_files.load import provenance_in
from lawa_opt.averaging_files.mean import Mean, Progress
from lawa_opt.averaging_files.provenance import Provenance, hashing, parsed
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.averaging_files.structure import check_same_structure


@dataclass(frozen=True)
class Verified:
    """What came of making an average again; its text is what the command prints.

    Attributes:
        out: the average.
        provenance: what it says of itself.
        differences: each a sentence; none if it is what it says, bit for bit.
    """

    out: Path
    provenance: Provenance
    differences: tuple[str, ...]

    def __str__(self) -> str:
        made = self.provenance
        sources = f"{len(made.sources)} source(s) that it names, weights {made.weights}"
        if not self.differences:
            return f"{self.out} is, bit for bit, the average of the {sources}"
        return "\n".join((f"{self.out} is NOT the average of the {sources}:", *self.differences))


def verify_average(
    out: str | os.PathLike[str],
    *,
    sources: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Make an average again from the sources that it names, and compare all of its tensors.

    Args:
        out: a file or folder that `average_checkpoints` has written.
        sources: a folder with the sources, by their last names; by default they are looked for
            where they were, as seen from `out`.
        progress: called with bytes compared so far and bytes in all.

    Raises:
        CheckpointError: `out` does not say what it was made of, or a file cannot be read.
    """
    target = Path(out)
    made, key = _provenance(target)
    dtype = getattr(torch, made.dtype) if made.dtype else None
    average = open_checkpoint(target, key)
    start = target.parent if sources is None else Path(sources)
    names = [Path(each.path) for each in made.sources]
    if sources is not None:
        names = _names_in_one_folder(names)
    paths = [start / name for name in names]
    for path in paths:
        if not path.exists():
            raise CheckpointError(
                f"{target} was made of {path}, which is not there: say where its sources are "
                "(--sources FOLDER), under their old names"
            )
    checkpoints = [open_checkpoint(path, made.key, made.strip_prefix) for path in paths]
    for checkpoint in checkpoints:
        check_same_structure(checkpoint, checkpoints[-1])
    mean = Mean(checkpoints, [each.weight for each in made.sources], dtype, progress)
    with hashing(checkpoints) as sums:
        found = _differences(mean, average)
        changed = _changed(made, checkpoints, sums())
    if found and made.torch != torch.__version__:
        found.append(f"it was made by torch {made.torch}, and this is {torch.__version__}")
    return Verified(target, made, (*changed, *found))


def _names_in_one_folder(paths: Sequence[Path]) -> list[Path]:
    """Return the names of paths, with the folders that tell equal ones apart, as run-1/model.pt."""
    if len({path.name for path in paths}) == len(paths):
        return [Path(path.name) for path in paths]
    above = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(above) for path in paths]


def _provenance(target: Path) -> tuple[Provenance, str]:
    """Return what an average says of itself, and where in it the state dict lies."""
    beside = target / IN_FOLDERS
    text: str | None = None
    nested = True
    with reading(target):
        if target.is_dir():
            if beside.is_file():
                text = beside.read_text(encoding="utf-8")
        else:
            text, nested = provenance_in(target)
    if text is None:
        raise CheckpointError(
            f"{target} does not say what it was made of: lawa_opt did not write it"
        )
    made = parsed(text, target)
    is_dcp = target.is_dir() and (target / ".metadata").exists()
    return made, made.key if is_dcp or (nested and not target.is_dir()) else ""


def _changed(
    made: Provenance, checkpoints: Sequence[Checkpoint], sums: Sequence[dict[str, str]]
) -> list[str]:
    return [
        f"{checkpoint.path}: {name} is not what it was (SHA-256)"
        for source, checkpoint, now in zip(made.sources, checkpoints, sums, strict=True)
        for name in sorted(source.sha256.keys() | now.keys())
        if source.sha256.get(name) != now.get(name)
    ]


def _differences(mean: Mean, average: Checkpoint) -> list[str]:
    names, held = mean.layout.keys(), average.tensors.keys()
    found = [f"it lacks {name!r}" for name in sorted(names - held, key=str)]
    found += [f"it has {name!r}, which its sources lack" for name in sorted(held - names, key=str)]
    for name in [*names & held]:
        made, there = mean.layout[name], average.tensors[name]
        if (made.shape, made.dtype) != (there.shape, there.dtype):
            there_is, is_made = f"{[*there.shape]} {there.dtype}", f"{[*made.shape]} {made.dtype}"
            found.append(f"{name!r} is {there_is} in it, and {is_made} of its sources")
    if found:
        return found
    unlike: dict[Any, str] = {}
    for batch in mean.batches():
        outs = [torch.empty(high - low, dtype=mean.layout[name].dtype) for name, low, high in batch]
        mean.write(batch, outs)
        for piece, out, there in zip(batch, outs, average.read(batch), strict=True):
            if piece[0] not in unlike and (said := _unlike(out, there, piece[1])):
                unlike[piece[0]] = said
    mean.refuse_changed()
    average.refuse_changed()
    return [f"{name!r} differs: {said}" for name, said in unlike.items()]


def _unlike(made: Tensor, there: Tensor, start: int) -> str:
    """Say where two flat tensors differ in a bit; nothing if they do not."""
    a, b = (each.contiguous().view(torch.uint8).view(-1, each.itemsize) for each in (made, there))
    wrong = (a != b).any(1)
    if not bool(wrong.any()):
        return ""
    at = int(wrong.nonzero()[0])
    values = f"{there[at].item()} in it, {made[at].item()} of its sources"
    return f"{int(wrong.sum())} of {wrong.numel()} elements seen, first {start + at}: {values}"
