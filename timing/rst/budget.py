"""The reference seconds that a run may spend."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from timing.rst.account import FEMTOSECONDS, Account, to_femtoseconds


@dataclass(frozen=True)
class Budget:
    """Reference seconds that a run may spend.

    Raises:
        ValueError: they are not a positive, finite number.
    """

    seconds: float
    femtoseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "femtoseconds", to_femtoseconds(self.seconds))
        except ValueError as error:
            raise ValueError(
                f"a budget must be a positive number of seconds: {self.seconds!r}"
            ) from error

    def spent(self, account: Account) -> float:
        """Return the fraction spent, from 0 to 1."""
        fraction = account.femtoseconds / self.femtoseconds
        return fraction if fraction < 1.0 else 1.0

    def affords(self, account: Account, cost_femtoseconds: int) -> bool:
        """Return whether this cost fits in what is left; ask before a step.

        Args:
            account: what is spent so far.
            cost_femtoseconds: by `Account.cost_femtoseconds`, which need not be asked anew at every
                step.
        """
        return account.femtoseconds + cost_femtoseconds <= self.femtoseconds


LONGEST_SECONDS = 1e12
"""The most that `parse_seconds` takes: 30,000 years, far from where numbers of steps overflow."""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Return the seconds in "90", "90s", "1.5m", "6h" or "1d".

    Raises:
        ValueError: it is none of these, below a femtosecond, or above `LONGEST_SECONDS`.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{text!r:.60} is no length of time such as 90s, 1.5m or 6h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not 1 / FEMTOSECONDS <= seconds <= LONGEST_SECONDS:
        raise ValueError(
            f"{text!r:.60} is no length of time from a femtosecond to {LONGEST_SECONDS:g} s"
        )
    return seconds
