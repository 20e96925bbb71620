"""Read an exponential moving average of every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from baselines.methods.averagers.base import Averager, AveragerPart, check_keys
from baselines.methods.averagers.tensors import load_tensors, tensors_of
from baselines.methods.part import Range, check_share
from baselines.workloads.base import Workload
from timing import Operation


def fixed_decay(decay: float, step: int) -> float:
    """Return a decay, warmed up as min(d, (1+t)/(10+t)): the first weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def growing_half_life(share: float, step: int) -> float:
    """Return a decay whose half-life is this share of the steps so far, for any length of training.

    The weight of the step before last has halved once so many steps have passed.
    """
    return math.pow(0.5, 1 / max(1.0, share * step))


class Ema(Averager):
    """Averages every step exponentially, with a decay for each.

    Args:
        model: that is trained.
        optimizer: that trains it.
        decay_at: the decay by the number of updates before, from 1.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, decay_at: Callable[[int], float]
    ) -> None:
        super().__init__(model, optimizer)
        self.average = AveragedModel(
            model, multi_avg_fn=partial(_ema_update, decay_at), use_buffers=True
        )

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Move the average."""
        self.average.update_parameters(self.model)
        return "ema_update"

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return a model of its own, there at any time."""
        return nullcontext(self.average.module), {}

    def operations(self) -> Mapping[str, Operation]:
        """Return an update."""
        return {"ema_update": Operation(lambda: self.after_step(0.0))}

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": tensors_of(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        load_tensors(self.average, state["average"])


@torch.no_grad()
def _ema_update(
    decay_at: Callable[[int], float],
    averaged: tuple[Tensor, ...] | list[Tensor],
    current: tuple[Tensor, ...] | list[Tensor],
    updates: Tensor | int,
) -> None:
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - decay_at(int(updates)))
    else:
        torch._foreach_copy_(averaged, current)


@dataclass(frozen=True)
class _EmaPart(AveragerPart):
    step_operations = {"ema_update": 1}

    @property
    def copies(self) -> int:
        """Return one: the average."""
        return 1


@dataclass(frozen=True)
class EmaPart(_EmaPart):
    """Average every step exponentially.

    Attributes:
        decay: the default reaches back about a tenth of a run of two thousand steps, as far as the
            window of LAWA.
    """

    name = "ema"
    title = "EMA"
    space = {"decay": Range(0.98, 0.9998)}

    decay: float = 0.995

    def __post_init__(self) -> None:
        check_share(decay=self.decay)

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> Ema:  # noqa: ARG002
        """Return what follows a training."""
        return Ema(model, optimizer, partial(fixed_decay, self.decay))


@dataclass(frozen=True)
class EmaGrowingPart(_EmaPart):
    """Average every step exponentially, with a half-life that grows with the training.

    Attributes:
        half_life: a share of the steps so far; the default reaches back about as far as LAWA with
            every="auto".
    """

    name = "ema-growing"
    title = "EMA of growing half-life"
    space = {"half_life": Range(0.005, 0.2, log=True)}

    half_life: float = 0.05

    def __post_init__(self) -> None:
        check_share(half_life=self.half_life)

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> Ema:  # noqa: ARG002
        """Return what follows a training."""
        return Ema(model, optimizer, partial(growing_half_life, self.half_life))
