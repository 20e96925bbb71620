"""BatchNorm's running statistics, computed anew with the weights that are in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lawa_opt.buffers import Buffers


def model_with_statistics(buffers: Buffers, loader: Any) -> nn.Module:
    """Return the one model given as `buffers`, if its statistics can be computed from a loader.

    Raises:
        TypeError: the loader is none.
        ValueError: none or several were given, or it has no BatchNorm with running statistics.
    """
    if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(
            "averaged(update_bn=...) takes a loader of batches, such as a DataLoader: got "
            f"{type(loader).__name__}"
        )
    if len(buffers.modules) != 1 or buffers.tensors:
        raise ValueError(
            "averaged(update_bn=...) runs the model and must know it: got "
            f"{len(buffers.modules)} modules and {len(buffers.tensors)} tensors as buffers; give "
            "LAWA the model itself, buffers=model"
        )
    [model] = buffers.modules
    if not any(isinstance(norm.running_mean, Tensor) for norm in _batchnorms(model)):
        raise ValueError(
            f"averaged(update_bn=...): {type(model).__name__} has no BatchNorm with running "
            "statistics, so there is nothing to compute anew: leave update_bn out"
        )
    return model


def recompute_statistics(model: nn.Module, loader: Iterable[Any]) -> None:
    """Compute the running statistics anew from a loader's batches, and change nothing else.

    The modes of the modules, BatchNorm's momenta and torch's random numbers are as before, also
    after an error; of the buffers, all may have been written to.

    Raises:
        ValueError: the loader has no batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in _batchnorms(model)]
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    gpus = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(gpus):
            batches = run_batches(model, loader)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not batches:
        raise ValueError(
            "averaged(update_bn=...): the loader gave no batch, as an iterator does that was gone "
            "through before: give a loader that begins anew, or a list"
        )


def run_batches(model: nn.Module, loader: Iterable[Any]) -> int:
    """Compute the statistics from a loader's batches, and return how many there were."""
    batches = 0

    def counted() -> Iterator[Any]:
        nonlocal batches
        for batch in loader:
            batches += 1
            yield batch

    update_bn(counted(), model)
    return batches


def _batchnorms(model: nn.Module) -> list[Any]:
    kind: type[nn.Module] = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]
