"""The methods compared: a learning-rate schedule and an averager each, by name or as a sum."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Real
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from baselines.external import digest_of, load_function, one_line_errors
from baselines.methods.averagers import Averager
from baselines.methods.averagers.swa import CyclicSwa, cyclic_linear
from baselines.methods.parts import AVERAGERS, SCHEDULES, MakeAverager, live
from baselines.methods.settings import MethodError, Range, Settings
from baselines.workloads.base import Workload
from timing.rst.schedules import constant, warm_up


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
    averager: MakeAverager
    share: float = 1.0
    space: Mapping[str, Range] = field(default_factory=dict)


def _swa_cyclic(
    model: nn.Module, optimizer: Optimizer, workload: Workload, _: Settings
) -> Averager:
    return CyclicSwa(model, optimizer, workload.bn_batches)


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


def _sum_of(schedule: str, averager: str = "", share: float = 1.0) -> Method:
    """Return the method of these parts; without an averager, of the live weights."""
    rate = SCHEDULES[schedule]
    at = "" if share == 1 else f" at {share:.0%} of the budget"
    if not averager:
        title = rate.title.removesuffix(" rate") if at else rate.title
        return Method(title + at, rate.factor, live, share)
    average = AVERAGERS[averager]
    title = f"{average.title} of {rate.averaged}{at}"
    return Method(title, rate.factor, average.make, share, average.space)


DEFAULT = ("constant", "decayed", "ema", "swa", "lawa", "lawa-decayed")

# Its authors recommend a warm-up and nothing else; 2% is that of their AlgoPerf entry.
_warmed_up = warm_up(constant, 0.02)

# Schedule, averager and share of the methods that have a name of their own.
_NAMED = {
    "constant": ("constant", "", 1.0),
    "decayed": ("decayed", "", 1.0),
    "ema": ("constant", "ema", 1.0),
    "swa": ("constant", "swa", 1.0),
    "lawa": ("constant", "lawa", 1.0),
    "lawa-decayed": ("decayed", "lawa", 1.0),
    "ema-decayed": ("decayed", "ema", 1.0),
    "ema-growing": ("constant", "ema-growing", 1.0),
    "cosine": ("cosine", "", 1.0),
    "lawa-cosine": ("cosine", "lawa", 1.0),
    "wsd": ("wsd", "", 1.0),
    "lawa-wsd": ("wsd", "lawa", 1.0),
    "ema-wsd": ("wsd", "ema", 1.0),
    # What an average at mid-training competes with: a run that ends there, fully decayed.
    "annealed-25": ("decayed", "", 0.25),
    "annealed-50": ("decayed", "", 0.5),
    "annealed-75": ("decayed", "", 0.75),
}
_NAMES = {parts: name for name, parts in _NAMED.items()}

METHODS = {
    **{name: _sum_of(*parts) for name, parts in _NAMED.items()},
    # These bring a schedule of their own.
    "swa-cyclic": Method("SWA of a cyclic rate", cyclic_linear, _swa_cyclic),
    "schedule-free": Method(
        "Schedule-Free", _warmed_up, _schedule_free, space={"beta": Range(0.8, 0.98)}
    ),
}


def canonical(name: str) -> str:
    """Return the one name of a method: of a sum of parts that of the table, or schedule first.

    "lawa+decayed" is "lawa-decayed", and "ema+cosine" is "cosine+ema".

    Raises:
        MethodError: it is a sum that makes no sense: in one line.
    """
    if not _is_sum(name):
        return name
    schedule, averager, share = parts = _parts_of(name)
    if parts in _NAMES:
        return _NAMES[parts]
    at = "" if share == 1 else f"@{share:.0%}"
    return f"{schedule}{at}{'+' if averager else ''}{averager}"


def _is_sum(name: str) -> bool:
    return name not in METHODS and not name.endswith(".py") and ("+" in name or "@" in name)


def _parts_of(name: str) -> tuple[str, str, float]:
    """Return schedule, averager and share of a sum such as "decayed@25%+lawa"."""
    schedule = averager = ""
    share = 1.0
    for word in name.split("+"):
        part, at, percent = (text.strip() for text in word.partition("@"))
        if part in AVERAGERS and not at:
            if averager:
                raise MethodError(f"{name!r} has two averagers, {averager} and {part}: give one")
            averager = part
        elif part in SCHEDULES:
            if schedule:
                raise MethodError(f"{name!r} has two schedules, {schedule} and {part}: give one")
            schedule = part
            if at and not re.fullmatch(r"[1-9]\d?%|100%", percent):
                raise MethodError(
                    f"{name!r}: {at}{percent} is no share of the budget in whole percent, such as "
                    "@25%"
                )
            share = int(percent.removesuffix("%")) / 100 if at else 1.0
        elif part in METHODS or part.endswith(".py"):
            if at:
                raise MethodError(
                    f"{name!r}: a share is of a schedule, such as decayed@25%, and not of {part}"
                )
            raise MethodError(
                f"{name!r}: {part} has a schedule and weights of its own: give it alone"
            )
        else:
            raise MethodError(
                f"{name!r}: {part!r} is neither a schedule ({', '.join(SCHEDULES)}) nor an "
                f"averager ({', '.join(AVERAGERS)})"
            )
    return schedule or "constant", averager, share


def built_in(name: str) -> Method | None:
    """Return the method of the table or the sum of parts; None for any other name."""
    if name in METHODS:
        return METHODS[name]
    try:
        return _of_parts(_parts_of(name)) if _is_sum(name) else None
    except MethodError:
        return None


@cache
def _of_parts(parts: tuple[str, str, float]) -> Method:
    return METHODS[_NAMES[parts]] if parts in _NAMES else _sum_of(*parts)


def title_of(name: str) -> str:
    """Return a method's title in tables and plots; that of a file is its stem, and it is not run.

    What is read from a folder may name any file, so whatever shows results asks this and not
    `find`.
    """
    if known := built_in(name):
        return known.title
    return Path(name).stem if name.endswith(".py") else name


def find(name: str) -> Method:
    """The method of this name or sum of parts, or that `method` of this Python file returns.

    A file defines `method() -> Method`; its stem is the method's title in tables and plots. It is
    run once for each of its texts, so only ask for files that the user named on this command line.

    Args:
        name: one of METHODS; a sum of parts, such as "decayed+lawa" or "decayed@25%"; or a path
            that ends in ".py".

    Raises:
        MethodError: there is none, or the file is at fault: in one line.
    """
    if name in METHODS:
        return METHODS[name]
    if _is_sum(name):
        return _of_parts(_parts_of(name))
    if not name.endswith(".py"):
        raise MethodError(
            f"{name!r} is none of {', '.join(METHODS)}, nor a sum such as cosine+ema, nor a path "
            "to a .py file"
        )
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
