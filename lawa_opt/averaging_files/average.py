"""The average of checkpoint files, as a state dict or written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

import lawa_opt
from lawa_opt.averaging_files import targets
from lawa_opt.averaging_files.choose import Chosen, Selection, choose_checkpoints, named_paths
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.averaging_files.mean import Mean, Progress
from lawa_opt.averaging_files.provenance import Provenance, Source, hashing, path_from
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.averaging_files.structure import notes_on_descriptions
from lawa_opt.averaging_files.write import (
    atomic_write,
    refuse_existing,
    refuse_names,
    refuse_place,
)
from lawa_opt.messages import ArgumentError
from lawa_opt.weights_by_step import Weights, is_one_by_one, weighing

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
LOGGER = logging.getLogger("lawa_opt")


@dataclass(frozen=True)
class Averaged:
    """What was averaged into a file or folder, and how; its text is what the command prints.

    Attributes:
        paths: the files or indexes that were taken, oldest first.
        shares: of each path in the average; their sum is 1.
        steps: of each path, or None where it is not known.
        unit: what the steps count: "step", "epoch", "number", or "" where none is known.
        order: what the order is known from.
        notes: what else the reader should know, one sentence each.
        out: the file or folder that was written, if one was.
    """

    paths: tuple[Path, ...]
    shares: tuple[float, ...]
    steps: tuple[int | None, ...]
    unit: str
    order: str
    notes: tuple[str, ...]
    out: Path | None

    def __str__(self) -> str:
        width = max(len(str(step)) for step in self.steps)
        rows = [
            f"  {share:.4f}  "
            + (f"{self.unit} {step!s:>{width}}  " if self.unit else "")
            + str(path)
            for share, step, path in zip(self.shares, self.steps, self.paths, strict=True)
        ]
        return "\n".join(
            (
                f"averaged {len(self.paths)} checkpoint(s), {self.order}, with these shares:",
                *rows,
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
    from_step: int | None = None,
    to_step: int | None = None,
    at_least: int | None = None,
    order: str = "number",
    key: str = "",
    strip_prefix: Sequence[str] = (),
    weights: Weights = "uniform",
    dtype: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[Any, Tensor]: ...


@overload
def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    last: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    at_least: int | None = None,
    order: str = "number",
    key: str = "",
    strip_prefix: Sequence[str] = (),
    weights: Weights = "uniform",
    dtype: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Averaged: ...


def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    last: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    at_least: int | None = None,
    order: str = "number",
    key: str = "",
    strip_prefix: Sequence[str] = (),
    weights: Weights = "uniform",
    dtype: str | None = None,
    format: str | None = None,  # noqa: A002 (the option is called so)
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[Any, Tensor] | Averaged:
    """Average the weights of checkpoints, piece by piece, into one state dict or file.

    Floating-point and complex tensors are averaged in float32 or wider and rounded once, to their
    own dtype; what is the same in all comes out bit for bit. Integers and bools, which have no
    mean, are taken from the newest, so do not average quantised weights.

    A file that is given twice, also by a link, counts once. What was taken, in which order and with
    which shares is logged as `lawa_opt`: INFO, and WARNING for files given twice. What is written
    says of itself which files it was made of, by their SHA-256, and how, and `python -m lawa_opt
    verify` makes it again from those.

    Memory: up to 1.3 times the largest file that is read or written. Nothing that a file holds is
    executed.

    Args:
        paths: checkpoints in any mix: safetensors files; torch files (read with
            `weights_only=True`; numpy's numbers, `argparse.Namespace` and paths may lie beside the
            tensors); indexes such as `model.safetensors.index.json`, whose shards lie beside them;
            folders with one file of weights by a well-known name; folders of
            torch.distributed.checkpoint (DCP), written by however many ranks; and folders that hold
            any of these.
        out: the file to write, `.safetensors` or `.pt`, `.pth`, `.bin`, `.ckpt`, or a folder; it
            appears whole or not at all. A safetensors file has the metadata of the newest
            checkpoint. A torch file is a flat state dict; with `key` it is laid out as the newest
            and has its other entries (on the CPU), as Lightning's `load_from_checkpoint` needs.
            Tensors tied in every torch file stay tied in a torch file. A folder is laid out as the
            newest: shards and index, with configuration and tokenizer copied, or DCP. By default
            the state dict is returned instead.
        last: average only the newest so many of `paths`, and refuse fewer.
        from_step: average none of before this step.
        to_step: average none of after this step.
        at_least: leave out what was taken less than so many steps before the next one that counts.
        order: "number", by the step that names, trainer_state.json or the files tell, so step-200
            before step-1000: refused where the order counts (`last`, `weights`) and is not known;
            or "given", oldest first.
        key: where the state dict lies in files that nest it, such as "state_dict.model".
        strip_prefix: what names lose that begin with it, such as "module.", one after the other.
        weights: "uniform"; those that stand for a decay of the rate over the checkpoints, "linear",
            "1-sqrt" or "cosine"; "ema:HALF_LIFE", the moving average in which a checkpoint counts
            half after so many steps; the path of a file; one weight a checkpoint, oldest first; or
            a function that makes these of the steps. They are from 0 on, of any sum. A file has one
            weight a line, oldest first; or under a header `step,weight` those of some steps, or
            under `step,factor` the decay itself: the rate's factor at some steps, linear between.
        dtype: of the average's floating-point tensors: "float32", "bfloat16", "float16" or
            "float64"; by default their own.
        format: "safetensors", "pt", "hf" or "dcp", where the suffix of `out` does not say it.
        overwrite: replace what is at `out`; a folder only if it is an average.
        progress: called with bytes averaged so far and bytes in all.

    Returns:
        The state dict; or with `out`, what was averaged: `paths`, `shares`, `steps`, `order`,
        `notes` and `out`, and as text what the command prints.

    Raises:
        CheckpointError: a file is missing, damaged, unlike the others (names, shapes, dtypes) or
            changed while it was read; one holds NaN, or infinities that others do not; there are
            fewer than `last`; their order is not known and counts; `out` is one of the inputs,
            exists, or cannot hold a name or dtype.
        ValueError: an argument that would be wrong for any files.
        OSError: `out` cannot be written.
    """
    selection = Selection(order, key, tuple(strip_prefix), last, from_step, to_step, at_least)
    inputs = named_paths(paths)
    target = None if out is None else Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}: {dtype!r}")
    kind = targets.format_of(target, format) if target else None
    weigh, one_by_one = weighing(weights), is_one_by_one(weights)
    if one_by_one and not selection.by_step and not any(path.is_dir() for path in inputs):
        weigh(range(last or len(inputs)))
    if target:
        refuse_place(target, folder=kind not in ("safetensors", "pt"))

    by_step = weights != "uniform" and not one_by_one
    chosen = choose_checkpoints(inputs, selection, ordered=by_step)
    newest = chosen.checkpoints[-1]
    if one_by_one:
        _refuse_other_order(inputs, chosen.checkpoints)
    steps, doubt = steps_for_weights(chosen)
    factors = weigh(steps)
    notes = [*chosen.notes, *notes_on_descriptions(chosen.checkpoints)]
    if by_step and doubt:
        notes.append(doubt)
    mean = Mean(chosen.checkpoints, factors, DTYPES[dtype] if dtype else None, progress)
    if target is None:
        state = mean.state(tied=True)
        LOGGER.info("%s", _report(chosen, factors, notes, None))
        return state
    kind = kind or targets.format_as(newest)
    refuse_existing(target, chosen.inputs, overwrite)
    if kind == "safetensors":
        refuse_names(target, mean.layout)
    name = weights if isinstance(weights, str) else "given"
    with (
        hashing(chosen.checkpoints) as sums,
        atomic_write(target, folder=kind in ("hf", "dcp")) as temporary,
    ):

        def provenance() -> str:
            sources = [
                Source(path_from(target.parent, each.path), each.step, float(factor), held)
                for each, factor, held in zip(chosen.checkpoints, factors, sums(), strict=True)
            ]
            mean.refuse_changed()
            made = (chosen.unit, name, key, selection.strip_prefix, dtype)
            return Provenance(tuple(sources), *made, lawa_opt.__version__).text()

        notes += targets.write(kind, mean, temporary, key, provenance)
    done = _report(chosen, factors, notes, target)
    LOGGER.info("%s", done)
    return done


def _report(
    chosen: Chosen, factors: Sequence[float], notes: Sequence[str], out: Path | None
) -> Averaged:
    taken = chosen.checkpoints
    shares = tuple(factor / sum(factors) for factor in factors)
    sources, steps = (tuple(each.source for each in taken), tuple(each.step for each in taken))
    return Averaged(sources, shares, steps, chosen.unit, chosen.order, tuple(notes), out)


def steps_for_weights(chosen: Chosen) -> tuple[list[int], str]:
    """Return the steps that weights go by, and in words what they are if not steps."""
    steps = [checkpoint.step for checkpoint in chosen.checkpoints]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        said = "the steps are not known, or not in the order given"
        said = said if chosen.order == "as given" else "no steps are known"
        return [*range(len(steps))], f"{said}, so the weights go by places"
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
