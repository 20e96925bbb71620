"""What writes the mean of snapshots that lie side by side: the fastest way that torch has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a product of bfloat16 matrices, added up in float32, is fast on this device.

    On processors without AVX-512, torch goes through such a product number by number.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def mean_dtype(snapshots: torch.dtype, outs: set[torch.dtype], device: torch.device) -> torch.dtype:
    """The type that the mean is written in: float32 or wider, if it has to be rounded after."""
    if outs == {torch.bfloat16} == {snapshots} and _multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.promote_types(snapshots, torch.float32)


def mean_writer(
    snapshots: torch.dtype, count: int, dtype: torch.dtype, device: torch.device, *, exact: bool
) -> Callable[[Tensor, Tensor], object]:
    """What writes the mean of the columns of a matrix, so many, of this type, into one column.

    It adds up in float32 or wider and rounds once, to the dtype of that column, which is the
    `mean_dtype`. If `exact`, it gives bit for bit what all columns agree on.
    """
    if count == 1:
        return lambda columns, mean: mean.copy_(columns[:, 0])
    write: Callable[[Tensor, Tensor], object] = _chain
    if device.type != "cpu":
        write = _reduced
    elif dtype == torch.bfloat16:
        write = partial(_narrow_product, torch.ones(1, count, dtype=dtype, device=device))
    elif snapshots == dtype and not _products_are_narrowed():
        # One pass over all columns, where a chain of additions makes one a column.
        write = partial(_product, torch.full((count,), 1 / count, dtype=dtype, device=device))
    return partial(_exact_where_same, write) if exact else write


def _products_are_narrowed() -> bool:
    """Whether the user lets processors that can do so multiply float32 in a narrower type."""
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() != "highest"
    return settings.fp32_precision not in ("none", "ieee")


def _reduced(columns: Tensor, mean: Tensor) -> None:
    torch.mean(columns, 1, dtype=mean.dtype, out=mean)


def _product(weights: Tensor, columns: Tensor, mean: Tensor) -> None:
    torch.mv(columns, weights, out=mean)


def _narrow_product(ones: Tensor, columns: Tensor, mean: Tensor) -> None:
    # The sum is scaled in float32, so that weights, which bfloat16 would round, are not needed.
    row = mean.unsqueeze(0)
    torch.addmm(row, ones, columns.t(), beta=0, alpha=1 / columns.shape[1], out=row)


def _chain(columns: Tensor, mean: Tensor) -> None:
    first, *others = columns.unbind(1)
    mean.copy_(first)
    for other in others:
        mean.add_(other)
    mean.div_(columns.shape[1])


def _exact_where_same(
    write: Callable[[Tensor, Tensor], object], columns: Tensor, mean: Tensor
) -> None:
    write(columns, mean)
    same = (columns == columns[:, :1]).all(1)
    mean.copy_(torch.where(same, columns[:, 0], mean))
