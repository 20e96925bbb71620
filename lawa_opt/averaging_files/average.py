"""The average of checkpoint files, as a state dict or a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from lawa_opt.averaging_files.choose import Chosen, Selection, choose_checkpoints, named_paths
from lawa_opt.averaging_files.find import TORCH_SUFFIXES, CheckpointError
from lawa_opt.averaging_files.read import Checkpoint, Piece
from lawa_opt.averaging_files.write import (
    atomic_write,
    refuse_input,
    refuse_names,
    refuse_place,
    write_safetensors,
)
from lawa_opt.messages import ArgumentError
from lawa_opt.reduction import weighted_mean
from lawa_opt.weights_by_step import Weights, is_one_by_one, weighing

BATCH_BYTES = 1 << 20
# Each batch maps the files anew, which costs an unpickling, so batches are 1/8 of a checkpoint.
BATCHES = 8

LOGGER = logging.getLogger("lawa_opt")


@dataclass(frozen=True)
class Averaged:
    """What was averaged into a file, and how; its text is what the command prints.

    Attributes:
        paths: the files or indexes that were taken, oldest first.
        shares: of each path in the average; their sum is 1.
        order: what the order is known from.
        notes: what else the reader should know, one sentence each.
        out: the file that was written, if one was.
    """

    paths: tuple[Path, ...]
    shares: tuple[float, ...]
    order: str
    notes: tuple[str, ...]
    out: Path | None

    def __str__(self) -> str:
        pairs = zip(self.shares, self.paths, strict=True)
        return "\n".join(
            (
                f"averaged {len(self.paths)} checkpoint(s), {self.order}, with these shares:",
                *(f"  {share:.4f}  {path}" for share, path in pairs),
                *self.notes,
                *([f"written: {self.out}"] if self.out else ()),
            )
        )


@overload
def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: None = None,
    *,
    last: int | None = None,
    order: str = "number",
    key: str = "",
    weights: Weights = "uniform",
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Tensor]: ...


@overload
def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    last: int | None = None,
    order: str = "number",
    key: str = "",
    weights: Weights = "uniform",
    progress: Callable[[int, int], object] | None = None,
) -> Averaged: ...


def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    last: int | None = None,
    order: str = "number",
    key: str = "",
    weights: Weights = "uniform",
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Tensor] | Averaged:
    """Average the weights of checkpoints, piece by piece, into one state dict or file.

    Floating-point and complex tensors are averaged in float32 or wider and rounded once, to their
    own dtype; what is the same in all comes out bit for bit. Integers and bools, which have no
    mean, are taken from the newest, so do not average quantised weights.

    A file that is given twice, also by a link, counts once. What was taken, in which order and with
    which shares is logged as `lawa_opt`: INFO, and WARNING for files given twice.

    Memory: up to 1.3 checkpoints, the average itself among them. Nothing that a file holds is
    executed.

    Args:
        paths: checkpoints in any mix: safetensors files; torch files (read with
            `weights_only=True`; numpy's numbers, `argparse.Namespace` and paths may lie beside the
            tensors); indexes such as `model.safetensors.index.json`, whose shards lie beside them;
            and folders with one file of weights by a well-known name.
        out: the file to write, `.safetensors` or `.pt`, `.pth`, `.bin`, `.ckpt`; it appears whole
            or not at all. A safetensors file has the metadata of the newest checkpoint. A torch
            file is a flat state dict; with `key` it is laid out as the newest and has its other
            entries (on the CPU), as Lightning's `load_from_checkpoint` needs. Tensors tied in every
            torch file stay tied in a torch file. By default the state dict is returned instead.
        last: average only the newest so many of `paths`, and refuse fewer.
        order: "number", by the numbers in the names, so step-200 before step-1000: refused where
            the order counts (`last`, `weights`) and the names do not tell it; or "given", oldest
            first.
        key: where the state dict lies in torch files that nest it, such as "state_dict.model".
        weights: "uniform"; those that stand for a decay of the rate over the checkpoints, "linear",
            "1-sqrt" or "cosine"; "ema:HALF_LIFE", the moving average in which a checkpoint counts
            half after so many steps; the path of a file; one weight a checkpoint, oldest first; or
            a function that makes these of the steps. They are from 0 on, of any sum. A file has one
            weight a line, oldest first; or under a header `step,weight` those of some steps, or
            under `step,factor` the decay itself: the rate's factor at some steps, linear between.
        progress: called with bytes averaged so far and bytes in all.

    Returns:
        The state dict; or with `out`, what was averaged: `paths`, `shares`, `order`, `notes` and
        `out`, and as text what the command prints.

    Raises:
        CheckpointError: a file is missing, damaged, unlike the others (names, shapes, dtypes) or
            changed while it was read; there are fewer than `last`; their order is not known and
            counts; `out` is one of the inputs, or cannot hold a name or dtype.
        ValueError: an argument that would be wrong for any files.
        OSError: `out` cannot be written.
    """
    selection = Selection(order=order, key=key, last=last)
    inputs = named_paths(paths)
    target = None if out is None else Path(out)
    if target and target.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ArgumentError(f"{target} must end in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    # As far as it can be told before any file is read.
    weigh, one_by_one = weighing(weights), is_one_by_one(weights)
    if one_by_one:
        weigh(range(last or len(inputs)))
    if target:
        refuse_place(target)

    by_step = weights != "uniform" and not one_by_one
    chosen = choose_checkpoints(inputs, selection, ordered=by_step)
    checkpoints, notes, how = chosen.checkpoints, [*chosen.notes], chosen.order
    newest = checkpoints[-1]
    if one_by_one:
        _refuse_other_order(inputs, checkpoints)
    steps, doubt = steps_for_weights(chosen)
    factors = weigh(steps)
    if by_step and doubt:
        notes.append(doubt)
    if target:
        refuse_input(target, dict(chosen.inputs))
    if any("lora_A" in str(name) for name in newest.tensors):
        notes.append("lora_A and lora_B are averaged apart: this is not the mean of their products")
    if target is None:
        state = _mean(checkpoints, factors, progress, tied=True)
    else:
        state = {}
        if kept := _write_mean(target, checkpoints, factors, progress):
            notes.append(f"kept from {newest.source} beside {key}: {', '.join(kept)}")
    shares = tuple(weight / sum(factors) for weight in factors)
    done = Averaged(tuple(each.source for each in checkpoints), shares, how, tuple(notes), target)
    LOGGER.info("%s", done)
    return state if target is None else done


def steps_for_weights(chosen: Chosen) -> tuple[list[int], str]:
    """Return the steps that weights go by, and in words what they are if not steps."""
    steps = [checkpoint.step for checkpoint in chosen.checkpoints]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return [*range(len(steps))], "no steps are known, so the weights go by places"
    if chosen.unit == "step":
        return known, ""
    return known, f"no steps are known, so the weights go by the {chosen.unit}s, as if these were"


def _refuse_other_order(inputs: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse weights that are given one by one, for checkpoints in another order."""
    taken = [checkpoint.path for checkpoint in checkpoints]
    given = [path for path in inputs if path in taken]
    if len(given) == len(taken) and given != taken:
        raise CheckpointError(
            "weights are given one by one, and the checkpoints not in the order of their numbers, "
            f'which begins with {taken[0]}: sort them, or say order="given"'
        )


def _write_mean(
    target: Path,
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    progress: Callable[[int, int], object] | None,
) -> list[str]:
    """Write the average, and return the names of what the newest has beside its state dict."""
    newest = checkpoints[-1]
    kept: list[str] = []
    if target.suffix == ".safetensors":
        refuse_names(target, newest.tensors)
    with atomic_write(target) as temporary:
        if target.suffix == ".safetensors":
            state = _mean(checkpoints, weights, progress, tied=False)
            write_safetensors(state, temporary, {"format": "pt"} | newest.metadata)
        else:
            state = _mean(checkpoints, weights, progress, tied=True)
            whole, kept = newest.put_in_place(state)
            with temporary.open("wb") as file:
                torch.save(whole, file)
            newest.refuse_changed()
    return kept


def _mean(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    progress: Callable[[int, int], object] | None,
    *,
    tied: bool,
) -> dict[Any, Tensor]:
    """Return the average, in the order of the newest; what is tied in all may stay so."""
    newest = checkpoints[-1]
    shared = set.intersection(*({*checkpoint.ties.items()} for checkpoint in checkpoints))
    ties = dict(shared) if tied else {}
    layout = {name: like for name, like in newest.tensors.items() if name not in ties}
    total = sum(like.nbytes for like in layout.values())
    state = {name: torch.empty(like.shape, dtype=like.dtype) for name, like in layout.items()}
    state = {name: state[ties.get(name, name)] for name in newest.tensors}
    done = 0
    for batch in _batches(layout, max(BATCH_BYTES, total // BATCHES)):
        outs = [state[name].view(-1)[low:high] for name, low, high in batch]
        average_batch(checkpoints, weights, batch, outs)
        done += sum(out.nbytes for out in outs)
        if progress is not None:
            progress(done, total)
    for checkpoint in checkpoints:
        checkpoint.refuse_changed()
    return state


def average_batch(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    batch: Sequence[Piece],
    outs: Sequence[Tensor],
) -> None:
    """Write the mean of a batch, all of numbers that have one or all of others, into `outs`."""
    if outs[0].is_floating_point() or outs[0].is_complex():
        rows = [partial(checkpoint.read, batch) for checkpoint in checkpoints]
        weighted_mean(rows, weights, outs)
        return
    for out, newest in zip(outs, checkpoints[-1].read(batch), strict=True):
        out.copy_(newest)


def _batches(layout: dict[Any, Tensor], size: int) -> Iterator[list[Piece]]:
    """Group tensors, cut where they are larger, whose means take up to `size` bytes."""

    def has_mean(name: Any) -> bool:
        return layout[name].is_floating_point() or layout[name].is_complex()

    for _, names in groupby(sorted(layout, key=has_mean), has_mean):
        batch: list[Piece] = []
        free = size
        for name in names:
            width = max(4, layout[name].itemsize)
            low, end = 0, layout[name].numel()
            while low < end:
                high = min(end, low + max(1, free // width))
                batch.append((name, low, high))
                free -= (high - low) * width
                low = high
                if free < width:
                    yield batch
                    batch, free = [], size
        if batch:
            yield batch
