"""What reads an average off a training run: each says which operations it adds and when."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lawa_opt import LAWA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor
    from torch.optim import Optimizer

    from lawa_opt.interval import Every

# About a tenth of a run of two thousand steps, as far as the window of LAWA reaches back.
EMA_DECAY = 0.995
# The last quarter of training, as in the experiments of Izmailov et al. (arXiv 1803.05407).
SWA_START, SWA_EVERY = 0.75, 10
# Of the steps so far: the growing EMA reaches back about as far as LAWA with every="auto".
HALF_LIFE_SHARE = 0.05


class Averager(Protocol):
    """Follows one training run.

    Attributes:
        step_operations: the most that following a step can add to it.
        read_operations: the most that reading the average can cost.
    """

    step_operations: Mapping[str, int]
    read_operations: Mapping[str, int]

    @property
    def optimizer(self) -> Optimizer:
        """The one to step."""

    def after_step(self, spent: float) -> str | None:
        """Follow a step, at this fraction of the budget; returns the operation it took, if any."""

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """A context that gives the model to evaluate, and the operations that cost something."""


class Live:
    """No average: the live weights."""

    step_operations: Mapping[str, int] = {}
    read_operations: Mapping[str, int] = {}

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Nothing to do."""
        return None

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The model itself."""
        return nullcontext(self.model), {}


class Lawa:
    """The mean of the k latest snapshots, BatchNorm's running statistics included."""

    step_operations: Mapping[str, int] = {"collect": 1}
    read_operations: Mapping[str, int] = {"average": 1}

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        self.model = model
        self.optimizer = LAWA(optimizer, k, every, buffers=model.buffers())

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """LAWA has collected in its step, or not."""
        interval = self.optimizer.interval
        return "collect" if interval.newest == interval.step else None

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The model under `averaged()`; live until the first collect."""
        return self._averaged(), self.read_operations if self.optimizer.held else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        with self.optimizer.averaged(if_empty="live"):
            yield self.model


def fixed_decay(step: int) -> float:
    """EMA_DECAY, warmed up as min(d, (1+t)/(10+t)) so that the first weights are soon forgotten."""
    return min(EMA_DECAY, (1 + step) / (10 + step))


def growing_half_life(step: int) -> float:
    """A decay whose half-life is HALF_LIFE_SHARE of the steps so far, for any length of training.

    The weight of the step before last has halved once so many steps have passed.
    """
    return math.pow(0.5, 1 / max(1.0, HALF_LIFE_SHARE * step))


class Ema:
    """An exponential moving average of every step, with a decay for each."""

    step_operations: Mapping[str, int] = {"ema_update": 1}
    read_operations: Mapping[str, int] = {}

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        decay: Callable[[int], float] = fixed_decay,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = AveragedModel(
            model, multi_avg_fn=partial(_ema_update, decay), use_buffers=True
        )

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Move the average."""
        self.average.update_parameters(self.model)
        return "ema_update"

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """A model of its own, there at any time."""
        return nullcontext(self.average.module), {}


@torch.no_grad()
def _ema_update(
    decay: Callable[[int], float],
    averaged: tuple[Tensor, ...] | list[Tensor],
    current: tuple[Tensor, ...] | list[Tensor],
    updates: Tensor | int,
) -> None:
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - decay(int(updates)))
    else:
        torch._foreach_copy_(averaged, current)


class Swa:
    """The mean of snapshots from the last quarter, BatchNorm's statistics recomputed at a reading.

    Before that quarter there is no average, and the live weights are read.
    """

    step_operations: Mapping[str, int] = {"swa_update": 1}

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, statistics_batches: Sequence[Tensor]
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = AveragedModel(model)
        self.statistics_batches = statistics_batches if has_batchnorm(model) else ()
        self.read_operations: Mapping[str, int] = (
            {"statistics": 1} if self.statistics_batches else {}
        )
        self._steps = 0

    def after_step(self, spent: float) -> str | None:
        """Take in every tenth step of the last quarter of the budget."""
        if spent < SWA_START:
            return None
        self._steps += 1
        if self._steps % SWA_EVERY != 1:
            return None
        self.average.update_parameters(self.model)
        return "swa_update"

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The averaged model, its statistics up to date."""
        if int(self.average.n_averaged) == 0:
            return nullcontext(self.model), {}
        return self._with_statistics(), self.read_operations

    @contextmanager
    def _with_statistics(self) -> Iterator[nn.Module]:
        if self.statistics_batches:
            update_bn(self.statistics_batches, self.average.module)
        yield self.average.module


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model has running statistics to recompute."""
    # update_bn looks for this very class.
    base: Any = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, base) for module in model.modules())
