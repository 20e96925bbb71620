"""Round weights as torchao does, by its weight-only quantisation: the one file that imports it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

# Its integers are of 1 to 8 bits.
MAX_BITS = 8


def check(weights: Mapping[str, Tensor], group: int | None, name: str) -> None:
    """Refuse what torchao cannot round, and a machine without it.

    Raises:
        ValueError: in one line.
    """
    instead = name.partition(":")[2]
    if find_spec("torchao") is None:
        raise ValueError(
            f"{name} needs torchao: pip install 'lawa-opt[torchao]', or read {instead}, which does "
            "not need it"
        )
    for called, weight in weights.items():
        if weight.dtype is not torch.float32:
            raise ValueError(
                f"{name} cannot be read: torchao rounds float32 weights, and {called} is "
                f"{str(weight.dtype).removeprefix('torch.')}: read {instead}"
            )
        if group and weight.shape[1] % group:
            raise ValueError(
                f"{name} cannot be read: torchao's groups must divide a row, and {called} has rows "
                f"of {weight.shape[1]} values: read {instead}, whose last group may be shorter"
            )


def left_out(model: nn.Module) -> set[int]:
    """Return the ids of parameters that torchao leaves: all but those of nn.Linear alone."""
    modules = list(model.modules())
    owners = Counter(id(own) for module in modules for own in module.parameters(recurse=False))
    linear = Counter(
        id(module.weight)
        for module in modules
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    )
    return {own for own, times in owners.items() if linear[own] < times}


def round_values(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Return the weight of an nn.Linear, (out, in) float32, as torchao's IntxWeightOnly reads it.

    Symmetric: with a scale of the range over 2^bits - 1, so that integers go from -2^(bits-1) on.
    """
    with _import_quietly():
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerAxis, PerGroup

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(group) if group else PerAxis(0),
    )
    quantize_(nn.Sequential(linear), config)
    values: Tensor = linear.weight.dequantize()
    return values.detach()


@contextmanager
def _import_quietly() -> Iterator[None]:
    """Leave out what torchao logs of kernels that do not load here: rounding needs none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
