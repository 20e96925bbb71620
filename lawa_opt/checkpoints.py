"""Average checkpoint files: what LAWA's window does while training runs, done afterwards."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from lawa_opt.files import (
    TORCH_SUFFIXES,
    Checkpoint,
    CheckpointError,
    Piece,
    find_files,
    refuse_changed,
    refuse_names,
    replacing,
    stamp,
    write_safetensors,
)
from lawa_opt.order import by_number

# torch runs an operation on so few elements on the calling thread, and they stay in its cache.
TILE_ELEMENTS = 1 << 15
BATCH_BYTES = 1 << 20
# Each batch maps the files anew, which costs an unpickling, so batches are 1/8 of a checkpoint.
BATCHES = 8

LOGGER = logging.getLogger("lawa_opt")


class ArgumentError(ValueError):
    """An argument that would be wrong for any files."""


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


def decay_factors(profile: str, n: int, decay: float | None = None) -> list[float]:
    """Factors w_1 ... w_(n-1) by which a decay profile scales the updates between n checkpoints.

    "linear" is 1 - i/n and "1-sqrt" is 1 - sqrt(i/n): the rate would reach zero one checkpoint
    after the newest. "ema" is 1 - decay**(n - i), the moving average that starts at the oldest.
    """
    if (profile == "ema") != (decay is not None):
        raise ArgumentError(f'weights "ema" and a decay go together: {profile!r}, decay {decay}')
    if decay is not None and not 0 <= decay < 1:
        raise ArgumentError(f"decay must be in [0, 1): {decay}")
    steps = range(1, n)
    if profile in ("uniform", "linear"):  # the uniform mean is a linear decay
        return [1 - i / n for i in steps]
    if profile == "1-sqrt":
        return [1 - math.sqrt(i / n) for i in steps]
    if decay is not None:
        return [1 - decay ** (n - i) for i in steps]
    raise ArgumentError(f'weights must be "uniform", "linear", "1-sqrt" or "ema": {profile!r}')


def merge_weights(factors: Sequence[float]) -> list[float]:
    """Weights c_0 ... c_k, oldest first, that stand for updates scaled by factors w_1 ... w_k.

    c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k (WSM, arXiv 2507.17634, theorem 3.1).
    """
    return [a - b for a, b in pairwise((1.0, *factors, 0.0))]


@overload
def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: None = None,
    *,
    last: int | None = None,
    order: str = "number",
    key: str = "",
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
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
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Averaged: ...


def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    last: int | None = None,
    order: str = "number",
    key: str = "",
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
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
        weights: "uniform"; the merge weights of a decay profile, "linear" (the same), "1-sqrt" or
            "ema" (see `decay_factors`); or one weight a checkpoint, oldest first, not negative, of
            any sum.
        decay: the factor a checkpoint of "ema", in [0, 1).
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
    if isinstance(paths, (str, os.PathLike)):
        raise ArgumentError(f"paths must be several checkpoints, not one: {os.fspath(paths)!r}")
    if last is not None and last < 1:
        raise ArgumentError(f"last must be a number of checkpoints from 1: {last}")
    if order not in ("number", "given"):
        raise ArgumentError(f'order must be "number" or "given": {order!r}')
    named = [os.fspath(path) for path in paths]
    if not all(named):
        raise ArgumentError("a path is empty, which would be the working folder: give it as .")
    given = [Path(path) for path in named]
    target = None if out is None else Path(out)
    if target and target.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ArgumentError(f"{target} must end in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    _refuse_few(given, last)
    _weights(weights, decay, last or len(given))

    identities = [_identity(path) for path in given]
    distinct, notes = _distinct(given, identities)
    if target:
        _refuse_target(target, dict(zip(given, identities, strict=True)))
    _refuse_few(distinct, last, *notes)
    factors = _weights(weights, decay, last or len(distinct))
    ordered, how = _ordered(distinct, order, last, weights)
    chosen = ordered[-last:] if last else ordered

    checkpoints = [Checkpoint(path, key) for path in chosen]
    newest = checkpoints[-1]
    for checkpoint in checkpoints:
        _refuse_unlike(checkpoint, newest)
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


def _weights(weights: str | Sequence[float], decay: float | None, n: int) -> Sequence[float]:
    """Return the weights of n checkpoints, oldest first."""
    if isinstance(weights, str):
        return merge_weights(decay_factors(weights, n, decay))
    if decay is not None:
        raise ArgumentError(f'a decay goes with weights "ema" only: {decay}')
    if len(weights) != n or not all(weight >= 0 for weight in weights):
        raise ArgumentError(f"{n} weights from 0 on are needed: {list(weights)}")
    if not 0 < sum(weights) < math.inf:
        raise ArgumentError(f"the sum of weights must be above 0 and finite: {list(weights)}")
    return weights


def _refuse_few(paths: Sequence[Path], last: int | None, *notes: str) -> None:
    if len(paths) < (last or 1):
        said = "; ".join((f"but {len(paths)} given", *notes))
        raise CheckpointError(f"{last or 1} checkpoints are needed, {said}")


def _identity(path: Path) -> frozenset[tuple[int, ...]] | Path:
    """Return the device and inode of each file of a checkpoint."""
    try:
        return frozenset(stamp(file)[:2] for file in find_files(path)[1])
    except CheckpointError:
        return path  # and opening it tells why


def _distinct(
    paths: Sequence[Path], identities: Sequence[frozenset[tuple[int, ...]] | Path]
) -> tuple[list[Path], list[str]]:
    """Return each checkpoint once, by its own name before a link's, and notes on the others."""
    same: dict[frozenset[tuple[int, ...]] | Path, list[int]] = {}
    for i, identity in enumerate(identities):
        same.setdefault(identity, []).append(i)

    def is_second_name(i: int) -> tuple[bool, bool]:
        return paths[i].is_symlink(), not any(map(str.isdigit, paths[i].name))

    kept = {min(each, key=is_second_name): each for each in same.values()}
    notes = [
        f"{paths[i]} is {paths[first]} once more, and counts once"
        for first, each in kept.items()
        for i in each
        if i != first
    ]
    for note in notes:
        LOGGER.warning("%s", note)
    return [paths[i] for i in sorted(kept)], notes


def _ordered(
    paths: list[Path], order: str, last: int | None, weights: str | Sequence[float]
) -> tuple[list[Path], str]:
    """Return the paths, oldest first, and in words how that is known."""
    if order == "given" or len(paths) == 1:
        return paths, "as given"
    try:
        ordered = by_number(paths)
    except ValueError as error:
        profiled = isinstance(weights, str) and weights not in ("uniform", "linear")
        if profiled or (last or len(paths)) < len(paths):
            raise CheckpointError(
                f'the order of the checkpoints counts and is not known: {error}; order="given" '
                "(--order given) takes them as given, oldest first"
            ) from error
        return paths, f"as given ({error}), so the newest is {paths[-1]}"
    if not isinstance(weights, str) and ordered != paths:
        raise CheckpointError(
            "weights are given one by one, and the checkpoints not in the order of their numbers, "
            f'which begins with {ordered[0]}: sort them, or say order="given"'
        )
    return ordered, "in the order of their numbers"


def _refuse_unlike(one: Checkpoint, other: Checkpoint) -> None:
    for a, b in ((one, other), (other, one)):
        if extra := a.tensors.keys() - b.tensors.keys():
            raise CheckpointError(f"{b.path} lacks {min(extra, key=str)!r}, which {a.path} has")
    for name, x in one.tensors.items():
        y = other.tensors[name]
        for what, here, there in (("shape", x.shape, y.shape), ("dtype", x.dtype, y.dtype)):
            if here != there:
                seen = f"{here} in {one.path} and {there} in {other.path}"
                raise CheckpointError(f"the {what} of {name!r} differs: {seen}")


def _refuse_target(target: Path, given: Mapping[Path, frozenset[tuple[int, ...]] | Path]) -> None:
    if not target.parent.is_dir():
        raise CheckpointError(f"{target} lies in a folder that does not exist")
    if not target.exists():
        return
    if not target.is_file():
        raise CheckpointError(f"{target} is a folder, FIFO, socket or device")
    for path, identity in given.items():
        if isinstance(identity, frozenset) and stamp(target)[:2] in identity:
            raise CheckpointError(f"{target} is part of the input {path}")


def _averages(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _batches(layout: dict[str, Tensor], size: int) -> Iterator[list[Piece]]:
    """Cut the tensors into tiles, in order, and group tiles whose means take about `size` bytes."""
    batch: list[Piece] = []
    held = 0
    for name, tensor in layout.items():
        for low in range(0, tensor.numel(), TILE_ELEMENTS):
            high = min(low + TILE_ELEMENTS, tensor.numel())
            batch.append((name, low, high))
            held += (high - low) * max(4, tensor.itemsize)
            if held >= size:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


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
    with replacing(target) as temporary:
        if target.suffix == ".safetensors":
            state = _mean(checkpoints, weights, progress, tied=False)
            write_safetensors(state, temporary, {"format": "pt"} | newest.metadata)
        else:
            state = _mean(checkpoints, weights, progress, tied=True)
            whole, kept = newest.put_in_place(state)
            with temporary.open("wb") as file:
                torch.save(whole, file)
            refuse_changed(newest)
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
        _blend(checkpoints, weights, batch, outs)
        done += sum(out.nbytes for out in outs)
        if progress is not None:
            progress(done, total)
    for checkpoint in checkpoints:
        refuse_changed(checkpoint)
    return state


def _blend(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    batch: Sequence[Piece],
    outs: Sequence[Tensor],
    *,
    infinities: bool = False,
) -> None:
    """Put the weighted means of a batch in `outs`, as m + (x - m) * share: equal values stay.

    Infinities, as in a mask, have no difference: `infinities` keeps equal ones, at some cost.
    """
    wides = [torch.promote_types(x.dtype, torch.float32) if _averages(x) else None for x in outs]
    means = [
        out if wide in (None, out.dtype) else torch.empty_like(out, dtype=wide)
        for out, wide in zip(outs, wides, strict=True)
    ]
    total = 0.0
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        total += weight
        for mean, tile, wide in zip(means, checkpoint.read(batch), wides, strict=True):
            if wide is None or weight == total:
                mean.copy_(tile)
            elif weight:
                x = tile if tile.dtype is wide else tile.to(wide)
                share = weight / total
                if infinities:
                    mean.copy_(torch.where(x == mean, x, torch.lerp(mean, x, share)))
                else:
                    mean.lerp_(x, share)
    if not infinities and any(
        wide and bool(mean.sum().isnan()) for wide, mean in zip(wides, means, strict=True)
    ):
        _blend(checkpoints, weights, batch, outs, infinities=True)
        return
    for out, mean in zip(outs, means, strict=True):
        if mean is not out:
            out.copy_(mean)
