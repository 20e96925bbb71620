"""The parts of methods: schedules and averagers by name; any schedule goes with any averager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn
from torch.optim import Optimizer

from baselines.methods.averagers import Averager, NoAveraging
from baselines.methods.averagers.ema import Ema, fixed_decay, growing_half_life
from baselines.methods.averagers.lawa import Lawa
from baselines.methods.averagers.swa import Swa
from baselines.methods.settings import Range, Settings
from baselines.workloads.base import Workload
from timing.rst.schedules import constant, cosine, linear, one_minus_sqrt, warm_up_stable_decay

MakeAverager = Callable[[nn.Module, Optimizer, Workload, Settings], Averager]


@dataclass(frozen=True)
class SchedulePart:
    """A schedule of the learning rate.

    Attributes:
        title: in tables and plots, where the live weights are evaluated.
        averaged: what an average is called to be of.
        factor: fraction of the budget spent to factor of the peak rate.
    """

    title: str
    averaged: str
    factor: Callable[[float], float]


@dataclass(frozen=True)
class AveragerPart:
    """An averager, before there is a model.

    Attributes:
        title: in tables and plots, before what it is an average of.
        make: makes what follows a run.
        space: the settings that are its own, and what tuning may try of each.
    """

    title: str
    make: MakeAverager
    space: Mapping[str, Range] = field(default_factory=dict)


def live(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
    """Return what averages nothing."""
    return NoAveraging(model, optimizer)


def _ema(model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings) -> Averager:
    return Ema(model, optimizer, partial(fixed_decay, settings.ema_decay))


def _ema_growing(
    model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings
) -> Averager:
    return Ema(model, optimizer, partial(growing_half_life, settings.half_life_share))


def _swa(
    model: nn.Module, optimizer: Optimizer, workload: Workload, settings: Settings
) -> Averager:
    return Swa(model, optimizer, workload.bn_batches, settings.swa_start)


def _lawa(model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings) -> Averager:
    return Lawa(model, optimizer, settings.k, settings.every)


# The cooldown of Hägele et al. (arXiv 2405.18392): 1-sqrt over the last fifth.
_wsd = warm_up_stable_decay(0.02, 0.2, one_minus_sqrt)

SCHEDULES = {
    "constant": SchedulePart("constant rate", "the constant rate", constant),
    "decayed": SchedulePart("fully decayed rate", "the decayed rate", linear),
    "cosine": SchedulePart("cosine decay", "the cosine decay", cosine),
    "wsd": SchedulePart("warm-up, stable, 1-sqrt decay", "warm-up, stable, 1-sqrt decay", _wsd),
}
AVERAGERS = {
    "ema": AveragerPart("EMA", _ema, {"ema_decay": Range(0.98, 0.9998)}),
    "ema-growing": AveragerPart(
        "EMA of growing half-life", _ema_growing, {"half_life_share": Range(0.005, 0.2, log=True)}
    ),
    "swa": AveragerPart("SWA", _swa, {"swa_start": Range(0.3, 0.95)}),
    "lawa": AveragerPart("LAWA", _lawa, {"every": Range(1, 256, log=True, whole=True)}),
}
