"""Read an exponential moving average of every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from baselines.methods.averagers.base import Averager, AveragerPart, check_keys
from baselines.methods.averagers.by_count import AverageByCount
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
        self.average = AverageByCount(model, lambda step: 1 - decay_at(step), exponential=True)
        self.models = (self.average.module,)

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Move the average."""
        self.average.update_parameters(self.model)
        return "ema_update"

    def begin_anew(self, names: Sequence[str]) -> None:
        """Forget the averages of these."""
        self.average.begin_anew(names)

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return a model of its own, there at any time."""
        self.average.take_live(self.model)
        return nullcontext(self.average.module), {}

    def operations(self) -> Mapping[str, Operation]:
        """Return an update."""
        return {"ema_update": Operation(lambda: self.after_step(0.0))}

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self.average.saved()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        self.average.load_saved(state)


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
