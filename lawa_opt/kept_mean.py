"""A mean that is kept between two collects, so that a second reading is only a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lawa_opt.reduction import weighted_mean
from lawa_opt.storage import Snapshots


class KeptMean:
    """The latest mean of a storage's rows, and what it was made of.

    Memory: what the mean is written into once more, from the first reading on.
    """

    def __init__(self) -> None:
        self.mean: list[Tensor] = []
        self._made_of: object = None

    def __getstate__(self) -> dict[str, Any]:
        return {"mean": [], "_made_of": None}  # versions are of one process

    def write(
        self, rows: Snapshots, weights: Sequence[float], outs: Sequence[Tensor], *, exact: bool
    ) -> None:
        """Write the weighted mean into tensors, made anew only where it would be another.

        Whatever writes to a row, a collect or a load in place, is counted by torch.
        """
        if rows.storage.rows.is_inference():  # of which torch counts nothing
            weighted_mean(rows, weights, outs, exact=exact)
            return
        kinds = [(out.dtype, out.device, out.shape) for out in outs]
        made_of = (rows.storage.rows._version, list(rows.slots), list(weights), exact, kinds)
        if self._made_of != made_of:
            self._made_of = None  # until it is whole
            if [(t.dtype, t.device, t.shape) for t in self.mean] != kinds:
                self.mean = []
                with torch.inference_mode(False):
                    self.mean = [torch.empty_like(out, requires_grad=False) for out in outs]
            weighted_mean(rows, weights, self.mean, exact=exact)
            self._made_of = made_of
        torch._foreach_copy_(list(outs), self.mean)
