"""The methods compared: a learning-rate schedule and an averager each. Adding one is one entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from numbers import Real
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from baselines.external import digest_of, load_function, one_line_errors
from baselines.methods.averagers import Averager, NoAveraging
from baselines.methods.averagers.ema import Ema, fixed_decay, growing_half_life
from baselines.methods.averagers.lawa import Lawa
from baselines.methods.averagers.swa import CyclicSwa, Swa, cyclic_linear
from baselines.workloads.base import Workload
from lawa_opt.schedule import Every
from timing.rst.schedules import (
    constant,
    cosine,
    linear,
    one_minus_sqrt,
    warm_up,
    warm_up_stable_decay,
)


class MethodError(ValueError):
    """A method that cannot be found or made: one line that says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What the methods are given.

    Attributes:
        learning_rate: peak rate.
        k: snapshots in LAWA's window.
        every: steps between two of them, or "auto".
        ema_decay: of EMA; the default reaches back about a tenth of a run of two thousand steps, as
            far as the window of LAWA.
        half_life_share: of EMA of growing half-life: a share of the steps so far; the default
            reaches back about as far as LAWA with every="auto".
        swa_start: the fraction of the budget from which SWA averages; the default is the last
            quarter, as in the experiments of Izmailov et al. (arXiv 1803.05407).
        beta: of Schedule-Free, between the average and its fast weights (arXiv 2405.15682).

    Raises:
        ValueError: one of the shares is out of its range.
    """

    learning_rate: float
    k: int
    every: Every
    ema_decay: float = 0.995
    half_life_share: float = 0.05
    swa_start: float = 0.75
    beta: float = 0.9

    def __post_init__(self) -> None:
        for name in ("ema_decay", "half_life_share", "swa_start", "beta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1: {value!r}")


@dataclass(frozen=True)
class Range:
    """What tuning may try of a setting.

    Attributes:
        low: the least value.
        high: the greatest value; it may be tried too.
        log: whether values are spread evenly by their logarithm.
        whole: whether they are whole numbers.

    Raises:
        ValueError: the ends make no range.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"from {self.low!r} to {self.high!r} is no range: low must be below high, and "
                "above zero on a logarithmic scale"
            )
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"whole numbers cannot go from {self.low!r} to {self.high!r}")


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        title: in tables and plots.
        schedule: fraction of the budget spent to factor of the peak rate.
        averager: makes what follows a run.
        share: of the budget that a run gets; the schedule and its end are of that part.
        space: the settings that are this method's own, and what tuning may try of each. The peak
            rate is tuned for every method, and not named here.
    """

    title: str
    schedule: Callable[[float], float]
    averager: Callable[[nn.Module, Optimizer, Workload, Settings], Averager]
    share: float = 1.0
    space: Mapping[str, Range] = field(default_factory=dict)


def _live(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
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


def _swa_cyclic(
    model: nn.Module, optimizer: Optimizer, workload: Workload, _: Settings
) -> Averager:
    return CyclicSwa(model, optimizer, workload.bn_batches)


def _lawa(model: nn.Module, optimizer: Optimizer, _: Workload, settings: Settings) -> Averager:
    return Lawa(model, optimizer, settings.k, settings.every)


def _schedule_free(
    model: nn.Module, optimizer: Optimizer, workload: Workload, settings: Settings
) -> Averager:
    try:
        from baselines.methods.averagers.schedule_free import ScheduleFree
    except ImportError as error:
        raise MethodError(
            f"schedule-free is trained by its own package ({error}): pip install schedulefree"
        ) from error
    return ScheduleFree(model, optimizer, workload.bn_batches, settings.beta)


DEFAULT = ("constant", "decayed", "ema", "swa", "lawa", "lawa-decayed")

# The cooldown of Hägele et al. (arXiv 2405.18392): 1-sqrt over the last fifth.
_wsd = warm_up_stable_decay(0.02, 0.2, one_minus_sqrt)

# Its authors recommend a warm-up and nothing else; 2% is that of their AlgoPerf entry.
_warmed_up = warm_up(constant, 0.02)

_EMA = {"ema_decay": Range(0.98, 0.9998)}
_LAWA = {"every": Range(1, 256, log=True, whole=True)}

METHODS = {
    "constant": Method("constant rate", constant, _live),
    "decayed": Method("fully decayed rate", linear, _live),
    "ema": Method("EMA of the constant rate", constant, _ema, space=_EMA),
    "swa": Method(
        "SWA of the constant rate", constant, _swa, space={"swa_start": Range(0.3, 0.95)}
    ),
    "lawa": Method("LAWA of the constant rate", constant, _lawa, space=_LAWA),
    "lawa-decayed": Method("LAWA of the decayed rate", linear, _lawa, space=_LAWA),
    "ema-decayed": Method("EMA of the decayed rate", linear, _ema, space=_EMA),
    "ema-growing": Method(
        "EMA of growing half-life, constant rate",
        constant,
        _ema_growing,
        space={"half_life_share": Range(0.005, 0.2, log=True)},
    ),
    "swa-cyclic": Method("SWA of a cyclic rate", cyclic_linear, _swa_cyclic),
    "cosine": Method("cosine decay", cosine, _live),
    "lawa-cosine": Method("LAWA of the cosine decay", cosine, _lawa, space=_LAWA),
    "wsd": Method("warm-up, stable, 1-sqrt decay", _wsd, _live),
    "lawa-wsd": Method("LAWA of warm-up, stable, 1-sqrt decay", _wsd, _lawa, space=_LAWA),
    "ema-wsd": Method("EMA of warm-up, stable, 1-sqrt decay", _wsd, _ema, space=_EMA),
    # What an average at mid-training competes with: a run that ends there, fully decayed.
    "annealed-25": Method("fully decayed at 25% of the budget", linear, _live, share=0.25),
    "annealed-50": Method("fully decayed at 50% of the budget", linear, _live, share=0.5),
    "annealed-75": Method("fully decayed at 75% of the budget", linear, _live, share=0.75),
    "schedule-free": Method(
        "Schedule-Free", _warmed_up, _schedule_free, space={"beta": Range(0.8, 0.98)}
    ),
}


def title_of(name: str) -> str:
    """Return a method's title in tables and plots; that of a file is its stem, and it is not run.

    What is read from a folder may name any file, so whatever shows results asks this and not
    `find`.
    """
    if name in METHODS:
        return METHODS[name].title
    return Path(name).stem if name.endswith(".py") else name


def find(name: str) -> Method:
    """The method of this name, or that `method` of this Python file returns.

    A file defines `method() -> Method`; its stem is the method's title in tables and plots. It is
    run once for each of its texts, so only ask for files that the user named on this command line.

    Args:
        name: one of METHODS, or a path that ends in ".py".

    Raises:
        MethodError: there is none, or the file is at fault: in one line.
    """
    if name in METHODS:
        return METHODS[name]
    if not name.endswith(".py"):
        raise MethodError(f"{name!r} is none of {', '.join(METHODS)}, nor a path to a .py file")
    path = Path(name)
    return _of_file(path, path.resolve(), digest_of(path, MethodError))


def file_names(names: Iterable[str]) -> list[str]:
    """Return those of the methods that are files of the user's own."""
    return [name for name in names if name not in METHODS and name.endswith(".py")]


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each method that is a file, so that no run goes on with another text of it.

    Raises:
        MethodError: one cannot be read.
    """
    return {name: digest_of(Path(name), MethodError) for name in file_names(names)}


@cache
def _of_file(path: Path, _resolved: Path, _digest: str) -> Method:
    with one_line_errors(path, MethodError):
        method = load_function(path, "method", "baselines.methods.method.Method", MethodError)()
        if not isinstance(method, Method):
            raise MethodError(
                f"method() of {path} must return a baselines.methods.method.Method; it returned a "
                f"{type(method).__name__}"
            )
        _check(path, method)
    make = method.averager

    def averager(
        model: nn.Module, optimizer: Optimizer, workload: Workload, settings: Settings
    ) -> Averager:
        with one_line_errors(path, MethodError):
            return make(model, optimizer, workload, settings)

    # One of the table's is known by what it is.
    known = any(make is other.averager for other in METHODS.values())
    return replace(method, title=title_of(str(path)), averager=make if known else averager)


def _check(path: Path, method: Method) -> None:
    """Refuse what would fail in the midst of a comparison."""
    for spent in (0.0, 0.5):
        factor: object = method.schedule(spent)
        if not isinstance(factor, Real) or not math.isfinite(factor):
            raise MethodError(
                f"the schedule of {path} must give a finite number, the factor of the peak rate; "
                f"at {spent:.0%} of the budget it gives {factor!r:.60}"
            )
    if not 0 < method.share <= 1:
        raise MethodError(f"the share of {path} must be above 0 and at most 1: {method.share!r}")
