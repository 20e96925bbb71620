"""Make BatchNorm's running statistics those of other weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import swa_utils


def update_bn(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Make BatchNorm's running statistics those of these batches, with the model's weights.

    The mode of the model and torch's random generator (dropout draws from it) stay as they were.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        swa_utils.update_bn(batches, model, device)
