"""The account of a run: how often each operation ran, and what that costs on the reference."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# By AlgoPerf's rules and No Train No Gain's: looking at the model is not training it.
OFF_THE_CLOCK = frozenset({"evaluate"})


class Account:
    """Reference system time: RST = sum over operations of n_op * c_op, in seconds.

    Counts are whole numbers and costs come from a profile, so the same operations give the same
    RST to the last digit, in whatever order, on whatever machine and under whatever load.

    Args:
        seconds: cost of each operation in reference seconds.
        off_the_clock: operations that are counted and shown, and not charged.
    """

    def __init__(
        self, seconds: Mapping[str, float], off_the_clock: frozenset[str] = OFF_THE_CLOCK
    ) -> None:
        self._costs = dict(seconds)
        self._off_the_clock = off_the_clock
        self.counts: dict[str, int] = {}

    def charge(self, operation: str, times: int = 1) -> None:
        """Count an operation that ran.

        Raises:
            KeyError: it has no cost; it is never free.
        """
        self._cost_of(operation)
        self.counts[operation] = self.counts.get(operation, 0) + times

    def _cost_of(self, operation: str) -> float:
        if operation not in self._costs:
            raise KeyError(
                f"{operation!r} has no cost on the reference machine (known: "
                f"{', '.join(sorted(self._costs))})"
            )
        return self._costs[operation]

    def cost(self, operations: Mapping[str, int]) -> float:
        """Reference seconds of operations, the uncharged ones left out; charges nothing."""
        return math.fsum(
            self._cost_of(operation) * times
            for operation, times in operations.items()
            if operation not in self._off_the_clock
        )

    @property
    def rst_seconds(self) -> float:
        """Reference seconds charged so far."""
        return self.cost(self.counts)

    def lines(self) -> list[dict[str, str | int | float | bool]]:
        """The account as a table: a line an operation."""
        return [
            {
                "operation": operation,
                "times": times,
                "seconds_each": self._costs[operation],
                "seconds": self._costs[operation] * times,
                "charged": operation not in self._off_the_clock,
            }
            for operation, times in sorted(self.counts.items())
        ]


@dataclass(frozen=True)
class Budget:
    """Reference seconds that a run may spend."""

    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"a budget must be a positive number of seconds: {self.seconds!r}")

    def left(self, account: Account) -> float:
        """Reference seconds that may still be charged."""
        return self.seconds - account.rst_seconds

    def spent(self, account: Account) -> float:
        """The fraction spent, from 0 to 1."""
        return min(1.0, account.rst_seconds / self.seconds)


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Seconds in "90", "90s", "1.5m", "6h" or "1d".

    Raises:
        ValueError: it is none of these, or not positive and finite.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no length of time such as 90s, 1.5m or 6h")
    return float(match[1]) * _UNITS[match[2]]
