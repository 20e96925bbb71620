"""Score examples by their losses under the weights as they are."""

from __future__ import annotations

from torch import Tensor, nn

from baselines.workloads.base import Batch, Workload, evaluating


def score(workload: Workload, model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each example: (n,), without a gradient, on the CPU.

    In evaluation mode, so that scoring changes no statistics and dropout decides nothing.
    """
    assert workload.losses is not None
    with evaluating(model):
        return workload.losses(model, batch).detach().float().cpu()


def examples_of(batch: Batch, chosen: Tensor) -> Batch:
    """Return some examples of a batch, by their places or by a mask."""
    return tuple(part[chosen.to(part.device)] for part in batch)
