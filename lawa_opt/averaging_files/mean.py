"""The mean of checkpoints, made a part at a time and refused where it is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.averaging_files.read import Checkpoint, Piece
from lawa_opt.reduction import weighted_mean

BATCH_BYTES = 1 << 20
# Each batch maps the files anew, which costs an unpickling, so batches are 1/8 of a file.
BATCHES = 8

Progress = Callable[[int, int], object]


class Mean:
    """The weighted mean of checkpoints of one structure.

    Attributes:
        checkpoints: oldest first; names, their order and integers are those of the newest.
        weights: of each checkpoint, of any sum.
        layout: names to meta tensors of the mean, in the dtypes that it will have.
        ties: names that stand for an earlier name's tensor in all checkpoints, to that name.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        weights: Sequence[float],
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.weights = weights
        self.layout = {
            name: like.to(dtype) if dtype and like.is_floating_point() else like
            for name, like in self.newest.tensors.items()
        }
        self.ties = dict(set.intersection(*({*each.ties.items()} for each in checkpoints)))
        self._progress = progress
        self._done = 0
        self._total = sum(like.nbytes for like in self.layout.values())
        largest = max(checkpoint.largest_file for checkpoint in checkpoints)
        self._batch = max(BATCH_BYTES, largest // BATCHES)

    @property
    def newest(self) -> Checkpoint:
        """The checkpoint whose integers, order of names and layout are taken."""
        return self.checkpoints[-1]

    def state(self, names: Iterable[Any] | None = None, *, tied: bool) -> dict[Any, Tensor]:
        """Return the mean of some names, or of all; what is tied in all may stay so."""
        wanted = self.layout if names is None else {name: self.layout[name] for name in names}
        ties = {name: first for name, first in self.ties.items() if tied and first in wanted}
        apart = {name: like for name, like in wanted.items() if name not in ties}
        made = {name: torch.empty(like.shape, dtype=like.dtype) for name, like in apart.items()}
        for batch in self.batches((name, 0, like.numel()) for name, like in apart.items()):
            self.write(batch, [made[name].view(-1)[low:high] for name, low, high in batch])
        self.refuse_changed()
        return {name: made[ties.get(name, name)] for name in wanted}

    def batches(self, pieces: Iterable[Piece] | None = None) -> Iterator[list[Piece]]:
        """Group pieces, by default all there is, and cut them to what fits beside the files."""
        if pieces is None:
            pieces = [(name, 0, like.numel()) for name, like in self.layout.items()]

        def kind(piece: Piece) -> str:
            return f"{_has_mean(self.layout[piece[0]])} {self.layout[piece[0]].dtype}"

        for _, group in groupby(sorted(pieces, key=kind), kind):
            batch: list[Piece] = []
            free = self._batch
            for name, low, end in group:
                width = max(4, self.layout[name].itemsize)
                while low < end:
                    high = min(end, low + max(1, free // width))
                    batch.append((name, low, high))
                    free -= (high - low) * width
                    low = high
                    if free < width:
                        yield batch
                        batch, free = [], self._batch
            if batch:
                yield batch

    def write(self, batch: Sequence[Piece], outs: Sequence[Tensor]) -> None:
        """Write the mean of pieces, all of numbers that have one or all of others, into `outs`."""
        source = self.newest.tensors[batch[0][0]].dtype
        if not _has_mean(outs[0]):
            for out, newest in zip(outs, self.newest.read(batch), strict=True):
                out.copy_(newest)
        else:
            wide = torch.promote_types(source, outs[0].dtype)
            # Of float64 the mean is made in float64, and rounded to less only then.
            rounds = source.itemsize > max(4, outs[0].itemsize)
            means = [torch.empty_like(out, dtype=wide) for out in outs] if rounds else outs
            rows = [partial(checkpoint.read, batch) for checkpoint in self.checkpoints]
            weighted_mean(rows, self.weights, means)
            for out, mean in zip(outs, means, strict=True) if rounds else ():
                out.copy_(mean)
            for piece, out in zip(batch, outs, strict=True):
                if not bool(out.sum().isfinite()):
                    self._refuse_not_finite(piece, out)
        self._done += sum(out.nbytes for out in outs)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def refuse_changed(self) -> None:
        """Refuse checkpoints that are not what they were when they were opened."""
        for checkpoint in self.checkpoints:
            checkpoint.refuse_changed()

    def _refuse_not_finite(self, piece: Piece, out: Tensor) -> None:
        """Refuse a mean that is not finite, but where all checkpoints have the same infinity."""
        bad = ~out.isfinite()
        if not bool(bad.any()):
            return
        pairs = zip(self.checkpoints, self.weights, strict=True)
        taken = [checkpoint for checkpoint, weight in pairs if weight]
        seen = torch.stack([next(each.read([piece]))[bad] for each in taken])
        same = (seen == seen[0]).all(0)
        for checkpoint, values in zip(taken, seen, strict=True):
            wrong = ~(values.isfinite() | same)
            if bool(wrong.any()):
                raise CheckpointError(
                    f"{checkpoint.path}: {piece[0]!r} holds {values[wrong][0].item()}, so there is "
                    "no mean of it: leave this checkpoint out"
                )
        if bool(seen.isfinite().any()):
            raise CheckpointError(f"the mean of {piece[0]!r} does not fit into {out.dtype}")


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
