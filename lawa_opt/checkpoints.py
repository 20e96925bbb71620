"""Average checkpoint files: what LAWA's window does while training runs, done afterwards."""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from lawa_opt.files import (
    CODES,
    TORCH_SUFFIXES,
    Checkpoint,
    CheckpointError,
    TorchCheckpoint,
    open_checkpoint,
    refuse_changed,
    replacing,
    write_safetensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lawa_opt.files import Piece

    _Blended = tuple[list[Piece], list[Tensor]]

# torch runs an operation on so few elements on the calling thread, and they stay in its cache.
TILE_ELEMENTS = 1 << 15
BATCH_BYTES = 1 << 20
MOST_THREADS = 4
# Pages read from a mapped file count as this process's memory until the file is unmapped, so it is
# mapped anew for each batch. Each time costs an unpickling, so batches are 1/5 of a checkpoint.
MAPPED_BATCHES = 5


def decay_factors(profile: str, n: int, decay: float | None = None) -> list[float]:
    """Factors w_1 ... w_(n-1) by which a decay profile scales the updates between n checkpoints.

    "linear" is 1 - i/n and "1-sqrt" is 1 - sqrt(i/n): the rate would reach zero one checkpoint
    after the newest. "ema" is 1 - decay**(n - i), the moving average that starts at the oldest.
    """
    if (profile == "ema") != (decay is not None):
        raise ValueError(f'weights "ema" and a decay go together: {profile!r}, decay {decay}')
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1): {decay}")
    steps = range(1, n)
    if profile in ("uniform", "linear"):  # the uniform mean is a linear decay
        return [1 - i / n for i in steps]
    if profile == "1-sqrt":
        return [1 - math.sqrt(i / n) for i in steps]
    if decay is not None:
        return [1 - decay ** (n - i) for i in steps]
    raise ValueError(f'weights must be "uniform", "linear", "1-sqrt" or "ema": {profile!r}')


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
    key: str = "",
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Tensor]: ...


@overload
def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    last: int | None = None,
    key: str = "",
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None: ...


def average_checkpoints(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    last: int | None = None,
    key: str = "",
    weights: str | Sequence[float] = "uniform",
    decay: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Tensor] | None:
    """Average the weights of checkpoints, piece by piece, into one state dict or file.

    Floating-point and complex tensors are averaged in float32 or wider and rounded once, to their
    own dtype; what is the same in all comes out bit for bit. Integers and bools, which have no
    mean, are taken from the newest, so do not average quantised weights.

    Memory: for a safetensors `out`, up to 20 MiB, or 0.4 checkpoints where torch files are read;
    otherwise the average itself, and 0.2 checkpoints where torch files are read. Each file is read
    once, safetensors by as many threads as torch has, up to four.

    Args:
        paths: checkpoints, oldest first, in any mix: safetensors files, folders with
            `model.safetensors` or `model.safetensors.index.json`, such an index, and torch files
            (read with `weights_only=True`). A shell puts step-1000 before step-200.
        out: the file to write, `.safetensors` or `.pt`, `.pth`, `.bin`, `.ckpt`, as a flat state
            dict; it appears whole or not at all. Safetensors metadata is the newest checkpoint's.
            Tensors tied in every torch file stay tied in a torch file, and are each written out in
            a safetensors file. By default the state dict is returned instead.
        last: average only the last so many of `paths`, and refuse fewer.
        key: where the state dict lies in torch files that nest it, such as "state_dict.model".
        weights: "uniform"; the merge weights of a decay profile, "linear" (the same), "1-sqrt" or
            "ema" (see `decay_factors`); or one weight a checkpoint, not negative, of any sum.
        decay: the factor a checkpoint of "ema", in [0, 1).
        progress: called with bytes averaged so far and bytes in all.

    Raises:
        CheckpointError: a file is missing, damaged, unlike the others (names, shapes, dtypes) or
            changed while it was read; there are fewer than `last`; `out` is one of the inputs.
        ValueError: an argument that would be wrong for any files.
        OSError: `out` cannot be written.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(f"paths must be several checkpoints, not one: {os.fspath(paths)!r}")
    if last is not None and last < 1:
        raise ValueError(f"last must be a number of checkpoints from 1: {last}")
    chosen = [Path(path) for path in paths]
    if len(chosen) < (last or 1):
        raise CheckpointError(f"{last or 1} checkpoints are needed, but {len(chosen)} given")
    chosen = chosen[-last:] if last else chosen
    target = None if out is None else Path(out)
    if target and target.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ValueError(f"{target} must end in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    if isinstance(weights, str):
        weights = merge_weights(decay_factors(weights, len(chosen), decay))
    elif decay is not None:
        raise ValueError(f'a decay goes with weights "ema" only: {decay}')
    if len(weights) != len(chosen) or not all(weight >= 0 for weight in weights):
        raise ValueError(f"{len(chosen)} weights from 0 on are needed: {list(weights)}")
    if not 0 < sum(weights) < math.inf:
        raise ValueError(f"the sum of weights must be above 0 and finite: {list(weights)}")

    checkpoints = [open_checkpoint(path, key) for path in chosen]
    newest = checkpoints[-1]
    for checkpoint in checkpoints:
        _refuse_unlike(checkpoint, newest)
    if target is None:
        return _state_dict(checkpoints, weights, progress)
    _refuse_target(target, checkpoints)
    with replacing(target) as file:
        if target.suffix == ".safetensors":
            # Larger elements first, so that each tensor is aligned.
            names = sorted(newest.tensors, key=lambda name: (-newest.tensors[name].itemsize, name))
            layout = {name: newest.tensors[name] for name in names}
            tiles = _average(checkpoints, weights, layout, progress)
            write_safetensors(file, layout, {"format": "pt"} | newest.metadata, tiles)
        else:
            torch.save(_state_dict(checkpoints, weights, progress), file)
    return None


def _refuse_unlike(one: Checkpoint, other: Checkpoint) -> None:
    for a, b in ((one, other), (other, one)):
        if extra := a.tensors.keys() - b.tensors.keys():
            raise CheckpointError(f"{b.path} lacks {min(extra)!r}, which {a.path} has")
    for name, x in one.tensors.items():
        y = other.tensors[name]
        for what, here, there in (("shape", x.shape, y.shape), ("dtype", x.dtype, y.dtype)):
            if here != there:
                seen = f"{here} in {one.path} and {there} in {other.path}"
                raise CheckpointError(f"the {what} of {name!r} differs: {seen}")


def _refuse_target(target: Path, checkpoints: Sequence[Checkpoint]) -> None:
    if target.is_dir() or not target.parent.is_dir():
        raise CheckpointError(f"{target} is a folder, or lies in one that does not exist")
    for checkpoint in checkpoints:
        if target.exists() and any(target.samefile(file) for file in checkpoint.stamps):
            raise CheckpointError(f"{target} is part of the input {checkpoint.path}")
    if target.suffix == ".safetensors":
        for name, tensor in checkpoints[-1].tensors.items():
            if tensor.dtype not in CODES:
                raise CheckpointError(f"{target} cannot hold {name!r}, which is {tensor.dtype}")


def _averages(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


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


def _state_dict(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    progress: Callable[[int, int], object] | None,
) -> dict[str, Tensor]:
    """The average, in the order of the newest; what is tied in all is averaged once."""
    newest = checkpoints[-1]
    ties = dict(set.intersection(*({*checkpoint.ties.items()} for checkpoint in checkpoints)))
    state = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in newest.tensors.items()}
    state |= {name: state[first] for name, first in ties.items()}
    layout = {name: x for name, x in newest.tensors.items() if name not in ties}
    for (name, low, high), mean in _average(checkpoints, weights, layout, progress):
        state[name].view(-1)[low:high] = mean
    return state


def _average(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    layout: dict[str, Tensor],
    progress: Callable[[int, int], object] | None,
) -> Iterator[tuple[Piece, Tensor]]:
    """Yield each tile, in the order of the layout, with its mean."""
    total = sum(tensor.nbytes for tensor in layout.values())
    mapped = any(isinstance(checkpoint, TorchCheckpoint) for checkpoint in checkpoints)
    batches = _batches(layout, max(BATCH_BYTES, total // MAPPED_BATCHES if mapped else 0))
    work = partial(_blend, checkpoints, weights, layout)
    done = 0
    # Mapped files are read one batch at a time, for the sake of memory.
    threads = 1 if mapped else min(MOST_THREADS, torch.get_num_threads())
    for batch, means in _in_order(work, batches, threads):
        yield from zip(batch, means, strict=True)
        means.clear()  # or they would last while the next are made
        done += sum((high - low) * layout[name].itemsize for name, low, high in batch)
        if progress is not None:
            progress(done, total)
    for checkpoint in checkpoints:
        refuse_changed(checkpoint)


def _in_order(
    work: Callable[[list[Piece]], _Blended], batches: Iterable[list[Piece]], threads: int
) -> Iterator[_Blended]:
    """Results in the order of the batches, from some threads that never run far ahead."""
    if threads == 1:
        yield from map(work, batches)
        return
    ahead: deque[Future[_Blended]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            ahead.append(pool.submit(work, batch))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _blend(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    layout: dict[str, Tensor],
    batch: list[Piece],
    *,
    infinities: bool = False,
) -> _Blended:
    """Weighted means of a batch as m + (x - m) * share, which leaves equal values as they are.

    Infinities, as in a mask, have no difference: `infinities` keeps equal ones, at some cost.
    """
    dtypes = [layout[name].dtype for name, _, _ in batch]
    wides = [torch.promote_types(d, torch.float32) if _averages(d) else None for d in dtypes]
    means: list[Tensor] = []
    total = 0.0
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        total += weight
        for i, (tile, wide) in enumerate(zip(checkpoint.read(batch), wides, strict=True)):
            if i == len(means):
                means.append(tile.to(wide, copy=True))
            elif wide is None or weight == total:
                means[i].copy_(tile)
            elif weight:
                x = tile if tile.dtype is wide else tile.to(wide)
                if infinities:
                    mean = torch.lerp(means[i], x, weight / total)
                    means[i] = torch.where(x == means[i], x, mean)
                else:
                    means[i].lerp_(x, weight / total)
    if not infinities and any(
        wide and bool(mean.sum().isnan()) for wide, mean in zip(wides, means, strict=True)
    ):
        return _blend(checkpoints, weights, layout, batch, infinities=True)
    return batch, means
