"""The learning-rate schedules: fraction of the budget spent to factor of the peak rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baselines.methods.part import Part, check_share
from timing.rst import schedules


@dataclass(frozen=True)
class SchedulePart(Part):
    """A schedule of the learning rate.

    Attributes:
        averaged: what an average is said to be of, in its title; by default the title.
        depends_on_spent: whether the factor changes with what was spent. Methods of one that does
            not can share a training.
    """

    averaged: ClassVar[str] = ""
    depends_on_spent: ClassVar[bool] = True

    def factor(self, spent: float) -> float:
        """Return the factor of the peak rate, at this fraction of the budget."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(SchedulePart):
    """Keep the peak rate to the end."""

    name = "constant"
    title = "constant rate"
    averaged = "the constant rate"
    depends_on_spent = False

    def factor(self, spent: float) -> float:
        """Return 1."""
        return schedules.constant(spent)


@dataclass(frozen=True)
class Decayed(SchedulePart):
    """Fall linearly to zero at the end of the budget: the fully decayed rate."""

    name = "decayed"
    title = "fully decayed rate"
    averaged = "the decayed rate"

    def factor(self, spent: float) -> float:
        """Return what is left of the budget, as a fraction."""
        return schedules.linear(spent)


@dataclass(frozen=True)
class Cosine(SchedulePart):
    """Fall by half a cosine to zero (Loshchilov and Hutter, arXiv 1608.03983)."""

    name = "cosine"
    title = "cosine decay"
    averaged = "the cosine decay"

    def factor(self, spent: float) -> float:
        """Return the factor on the half cosine."""
        return schedules.cosine(spent)


@dataclass(frozen=True)
class Wsd(SchedulePart):
    """Warm up, stay at the peak, and fall by 1 - sqrt (Hägele et al., arXiv 2405.18392).

    Attributes:
        warm_up: fraction of the budget.
        cooldown: fraction of the budget, at its end.
    """

    name = "wsd"
    title = "warm-up, stable, 1-sqrt decay"
    averaged = "warm-up, stable, 1-sqrt decay"

    warm_up: float = 0.02
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        check_share(warm_up=self.warm_up, cooldown=self.cooldown)
        # Refuses what is more than the budget.
        self.factor(0.0)

    def factor(self, spent: float) -> float:
        """Return the factor on the way up, at the peak or on the way down."""
        decay = schedules.one_minus_sqrt
        return schedules.warm_up_stable_decay(self.warm_up, self.cooldown, decay)(spent)


@dataclass(frozen=True)
class WarmUp(SchedulePart):
    """Warm up, and stay at the peak.

    Attributes:
        warm_up: fraction of the budget.
    """

    name = "warm-up"
    title = "warm-up, constant rate"
    averaged = "the constant rate after a warm-up"

    warm_up: float = 0.02

    def __post_init__(self) -> None:
        check_share(warm_up=self.warm_up)

    def factor(self, spent: float) -> float:
        """Return the factor on the way up, then 1."""
        return schedules.warm_up(schedules.constant, self.warm_up)(spent)
