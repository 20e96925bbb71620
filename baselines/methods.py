"""The methods compared: a learning-rate schedule and an averager each. Adding one is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.averagers import Averager, Ema, Lawa, Live, Swa
from timing.schedules import constant, linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

    from baselines.workloads.workload import Workload
    from lawa_opt.interval import Every


@dataclass(frozen=True)
class Settings:
    """What the user sets for all methods."""

    learning_rate: float
    k: int
    every: Every


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        title: in tables and plots.
        schedule: fraction of the budget spent to factor of the peak rate.
        averager: makes what follows a run.
    """

    title: str
    schedule: Callable[[float], float]
    averager: Callable[[nn.Module, Optimizer, Workload, Settings], Averager]


def _live(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    return Live(model, optimizer)


def _ema(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    return Ema(model, optimizer)


def _swa(model: nn.Module, optimizer: Optimizer, workload: Workload, _: Settings) -> Averager:
    return Swa(model, optimizer, workload.statistics_batches)


def _lawa(model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings) -> Averager:
    return Lawa(model, optimizer, settings.k, settings.every)


METHODS = {
    "constant": Method("constant rate", constant, _live),
    "decayed": Method("fully decayed rate", linear, _live),
    "ema": Method("EMA of the constant rate", constant, _ema),
    "swa": Method("SWA of the constant rate", constant, _swa),
    "lawa": Method("LAWA of the constant rate", constant, _lawa),
    "lawa-decayed": Method("LAWA of the decayed rate", linear, _lawa),
}
