"""The settings that methods are given, and what tuning may try of each."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_opt.schedule import Every


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
