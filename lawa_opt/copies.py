"""Copies of a model's state with averages in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lawa_opt import coverage
from lawa_opt.average import Average
from lawa_opt.messages import few
from lawa_opt.swap import Swap
from lawa_opt.weights_by_step import Weights, weighing


def averages_of(lawas: Sequence[Any]) -> list[Average]:
    """Return the average of each LAWA.

    Raises:
        TypeError: one is something else.
    """
    for lawa in lawas:
        if not isinstance(getattr(lawa, "average", None), Average):
            raise TypeError(f"others must be LAWAs: got {type(lawa).__name__}; wrap it in one too")
    return [lawa.average for lawa in lawas]


def averaged_copies(
    model: nn.Module,
    lawas: Sequence[Any],
    k: int | None,
    weights: Weights,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Return copies of a model's state with the mean of each tensor that has one.

    Args:
        model: that is averaged.
        lawas: of its optimizers.
        k: of so many snapshots.
        weights: of the snapshots.
        dtype: of the means.

    Raises:
        TypeError: a LAWA is something else.
        ValueError: the weights do not fit, no tensor of the model has a mean, or only a part of
            what is trained.
    """
    means: dict[int, Tensor] = {}
    averages, weigh = averages_of(lawas), weighing(weights)
    entries = model.state_dict(keep_vars=True)
    for average in averages:
        means |= average.means(k, dtype, weigh)
    if not any(id(value) in means for value in entries.values()):
        raise ValueError(coverage.NOT_THE_MODELS)
    swaps = lawas[0].swaps
    _check_coverage(model, means, averages, swaps[-1] if swaps else None)
    return _copied_entries(entries, means)


def copy_with(weights: dict[str, Any], model: nn.Module) -> nn.Module:
    """Return a copy of a model with these weights."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin


def _check_coverage(
    model: nn.Module, means: dict[int, Tensor], averages: Sequence[Average], swap: Swap | None
) -> None:
    """Refuse a part of an average, and warn of statistics that are not averaged."""
    optimizers = [average.base for average in averages]
    for average in averages:
        coverage.refuse_replaced_buffers(model, average.buffers)
    coverage.refuse_unaveraged_parameters(model, means, optimizers)
    # Within a block, statistics are as they were made there.
    names = [] if swap else coverage.unaveraged_statistics(model, means, optimizers)
    if names:
        averages[0].say(
            f"{few(names)} are live beside averaged weights: give LAWA the model, "
            "buffers=model, or recompute them by torch.optim.swa_utils.update_bn"
        )
    if swap and swap.rewritten_buffers():
        averages[0].say(
            "statistics were computed anew inside this block: model.state_dict() has them, "
            "and averaged_state_dict() those of the window"
        )


def _copied_entries(entries: Mapping[str, Any], means: dict[int, Tensor]) -> dict[str, Any]:
    """Return copies of a state dict's entries, tied ones too, with means where there are some.

    Args:
        entries: the tensors themselves, not detached.
        means: by the ids of the tensors; each is taken once, and later copied.
    """
    result: dict[str, Any] = {}
    firsts: dict[int, str] = {}
    for name, value in entries.items():
        mean = means.pop(id(value), None)
        if mean is None and isinstance(value, Tensor):
            first = firsts.get(id(value))
            source = value.detach() if first is None else result[first]
            mean = source.clone()
        firsts.setdefault(id(value), name)
        result[name] = copy.deepcopy(value) if mean is None else mean
    return result
