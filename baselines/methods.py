"""The methods compared: a learning-rate schedule and an averager each. Adding one is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.averagers import Averager, Ema, Lawa, Live, Swa, growing_half_life
from timing.schedules import constant, cosine, linear, one_minus_sqrt, warm_up_stable_decay

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
        share: of the budget that a run gets; the schedule and its end are of that part.
    """

    title: str
    schedule: Callable[[float], float]
    averager: Callable[[nn.Module, Optimizer, Workload, Settings], Averager]
    share: float = 1.0


def _live(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    return Live(model, optimizer)


def _ema(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    return Ema(model, optimizer)


def _ema_growing(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    return Ema(model, optimizer, growing_half_life)


def _swa(model: nn.Module, optimizer: Optimizer, workload: Workload, _: Settings) -> Averager:
    return Swa(model, optimizer, workload.statistics_batches)


def _lawa(model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings) -> Averager:
    return Lawa(model, optimizer, settings.k, settings.every)


DEFAULT = ("constant", "decayed", "ema", "swa", "lawa", "lawa-decayed")

# The cooldown of Hägele et al. (arXiv 2405.18392): 1-sqrt over the last fifth.
_wsd = warm_up_stable_decay(0.02, 0.2, one_minus_sqrt)

METHODS = {
    "constant": Method("constant rate", constant, _live),
    "decayed": Method("fully decayed rate", linear, _live),
    "ema": Method("EMA of the constant rate", constant, _ema),
    "swa": Method("SWA of the constant rate", constant, _swa),
    "lawa": Method("LAWA of the constant rate", constant, _lawa),
    "lawa-decayed": Method("LAWA of the decayed rate", linear, _lawa),
    "ema-decayed": Method("EMA of the decayed rate", linear, _ema),
    "ema-growing": Method("EMA of growing half-life, constant rate", constant, _ema_growing),
    "cosine": Method("cosine decay", cosine, _live),
    "lawa-cosine": Method("LAWA of the cosine decay", cosine, _lawa),
    "wsd": Method("warm-up, stable, 1-sqrt decay", _wsd, _live),
    "lawa-wsd": Method("LAWA of warm-up, stable, 1-sqrt decay", _wsd, _lawa),
    "ema-wsd": Method("EMA of warm-up, stable, 1-sqrt decay", _wsd, _ema),
    # What an average at mid-training competes with: a run that ends there, fully decayed.
    "annealed-25": Method("fully decayed at 25% of the budget", linear, _live, share=0.25),
    "annealed-50": Method("fully decayed at 50% of the budget", linear, _live, share=0.5),
    "annealed-75": Method("fully decayed at 75% of the budget", linear, _live, share=0.75),
}
