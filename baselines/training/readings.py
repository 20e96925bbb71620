"""Evaluate weights as they will be used: rounded in a copy, off the clock and charged to no run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from baselines.training import distributed
from baselines.training.rounding import FLOAT, Rounding, rounded

# What is said of a metric of rounded weights that is no finite number.
NOT_FINITE = "not finite"


def read_rounded(
    model: nn.Module,
    roundings: Sequence[Rounding],
    evaluate: Callable[[nn.Module], float],
    device: torch.device,
) -> dict[str, float]:
    """Return the metric of each rounded copy of a model, by the name of the rounding.

    Infinite where it is no finite number, which is a reading like another. Rank 0 alone rounds and
    evaluates; every rank must call.

    Args:
        model: it, its mode and torch's random generators stay as they are.
        roundings: each makes a copy, one at a time.
        evaluate: of the workload, on one of its parts.
        device: that ranks share numbers on.
    """
    found = {}
    for rounding in roundings:
        try:
            value = evaluate(rounded(model, rounding)) if distributed.rank() == 0 else None
        except Exception as error:
            error.add_note(f"read as {rounding.name}")
            raise
        shared = distributed.broadcast_from_rank0(value, device)
        found[rounding.name] = shared if math.isfinite(shared) else math.inf
    return found


def in_title(reading: str) -> str:
    """Return what a title says of how the weights are read; nothing of float."""
    return "" if reading == FLOAT else f", read as {reading}"
