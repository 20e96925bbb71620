"""Take over the groups of parameters of a workload's optimizer into another optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from baselines.workloads.base import Workload


def groups_of(
    workload: Workload, model: nn.Module, learning_rate: float, rate: float
) -> list[dict[str, Any]]:
    """Return parameters, rate and decay of each group.

    Args:
        workload: gives the optimizer that they are of.
        model: whose parameters they have.
        learning_rate: the peak rate, which was multiplied by `rate` already.
        rate: the decays are divided by it, so that their products with the rates stay.
    """
    return [
        {
            "params": group["params"],
            "lr": group["lr"],
            "weight_decay": group.get("weight_decay", 0.0) / rate,
        }
        for group in workload.make_optimizer(model, learning_rate).param_groups
    ]
