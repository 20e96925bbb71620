"""The account of a run: how often each operation ran, and what that costs on the reference."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from timing.rst.policy import POLICIES, Policy, uncharged

FEMTOSECONDS = 10**15
_ALL: Mapping[str, float] = MappingProxyType({})


def to_femtoseconds(seconds: float) -> int:
    """Return whole femtoseconds, rounded; the sum of a billion is then exact in any order.

    Raises:
        ValueError: it is no finite number, or below half a femtosecond.
    """
    if not math.isfinite(seconds) or (rounded := round(Fraction(seconds) * FEMTOSECONDS)) < 1:
        raise ValueError(f"not a positive, finite number of seconds: {seconds!r}")
    return rounded


def reference_joules(counts: Mapping[str, float], joules: Mapping[str, float]) -> float | None:
    """Return the joules of operations, in any order the same; None where one of them has none.

    Args:
        counts: how often each ran, or as large a share of it as is charged.
        joules: of each on the reference machine.
    """
    charged = {operation: times for operation, times in counts.items() if times}
    if not joules or not charged.keys() <= joules.keys():
        return None
    return math.fsum(joules[operation] * times for operation, times in charged.items())


def charged_counts(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return how often each operation of an account is charged, of shares their sum."""
    return {str(line["operation"]): line["times"] * float(line["charged"]) for line in lines}


class Account:
    """Reference system time: RST = sum over operations of n_op * c_op, in seconds.

    Counts are whole numbers and costs from a profile become whole femtoseconds, so the same
    operations give the same RST to the last digit, in whatever order, on whatever machine and under
    whatever load, also when a run is resumed.

    Args:
        costs: of each operation in reference seconds.
        policy: which operations are charged; all are counted and shown.
        shares: of the cost of operations that is charged under every policy, such as 0 for what is
            left free, or 1/5 of what five runs share; all of it for those that are not here.
        joules: of each operation on the reference machine, where they are known.

    Raises:
        ValueError: a cost, or joules, are no positive, finite number, a share is not between 0 and
            1, or there is no such policy.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        policy: Policy = "algoperf",
        shares: Mapping[str, float] = _ALL,
        joules: Mapping[str, float] = _ALL,
    ) -> None:
        self._uncharged = uncharged(policy)
        self.policy: Policy = policy
        self._shares = dict(shares)
        self._joules = dict(joules)
        if wrong := [name for name, share in shares.items() if not 0 <= share <= 1]:
            raise ValueError(
                f"the share of {wrong[0]!r} that is charged must be from 0 to 1: "
                f"{shares[wrong[0]]!r}"
            )
        if wrong := [name for name, each in joules.items() if not 0 < each < math.inf]:
            raise ValueError(
                f"the joules of {wrong[0]!r} must be above zero and finite: {joules[wrong[0]]!r}"
            )
        self._costs = {name: _cost(name, seconds) for name, seconds in costs.items()}
        self._prices = {
            name: 0 if name in self._uncharged else self._shared(name) for name in self._costs
        }
        self._counts = dict.fromkeys(self._costs, 0)
        self.femtoseconds = 0

    def _shared(self, operation: str) -> int:
        """Return the femtoseconds that are charged for it where the policy charges it."""
        return round(self._costs[operation] * Fraction(self._shares.get(operation, 1)))

    def charge(self, operation: str, times: int = 1) -> None:
        """Count an operation that ran.

        Raises:
            KeyError: it has no cost; it is never free for that.
            ValueError: `times` is not a whole number from 0.
        """
        if times != 1 and not (isinstance(times, int) and times >= 0):
            raise ValueError(f"{operation!r} cannot run {times!r} times: give a whole number")
        try:
            self.femtoseconds += self._prices[operation] * times
        except KeyError:
            raise self._unknown(operation) from None
        self._counts[operation] += times

    def _unknown(self, operation: str) -> KeyError:
        return KeyError(
            f"{operation!r} has no cost on the reference machine (known: "
            f"{', '.join(sorted(self._costs))})"
        )

    @property
    def counts(self) -> dict[str, int]:
        """Return how often each operation ran, those that did not left out; a copy."""
        return {operation: times for operation, times in self._counts.items() if times}

    def cost_femtoseconds(self, operations: Mapping[str, int]) -> int:
        """Return what operations would be charged, exactly; charges nothing.

        Raises:
            KeyError: one has no cost.
        """
        prices = self._prices
        total = 0
        for operation in operations:
            try:
                total += prices[operation] * operations[operation]
            except KeyError:
                raise self._unknown(operation) from None
        return total

    def cost(self, operations: Mapping[str, int]) -> float:
        """Return reference seconds of operations, the uncharged ones left out; charges nothing.

        Raises:
            KeyError: one has no cost.
        """
        return self.cost_femtoseconds(operations) / FEMTOSECONDS

    @property
    def rst_seconds(self) -> float:
        """Return the reference seconds charged so far."""
        return self.femtoseconds / FEMTOSECONDS

    @property
    def rse_joules(self) -> float | None:
        """Return reference system energy: joules, on the reference machine, of what was charged.

        The same for the same counts, like RST. None where an operation that was charged has none.
        """
        return reference_joules(charged_counts(self.lines()), self._joules)

    def totals(self) -> dict[Policy, float]:
        """Return the reference seconds that each policy would have charged for what ran."""
        return {
            policy: sum(
                self._shared(operation) * times
                for operation, times in self._counts.items()
                if operation not in uncharged(policy)
            )
            / FEMTOSECONDS
            for policy in POLICIES
        }

    def lines(self) -> list[dict[str, str | int | float | bool]]:
        """Return the account as a table, a line an operation; "charged" is the share that is.

        Joules are in the lines of the operations of which they are known.
        """
        return [
            {
                "operation": operation,
                "times": times,
                "seconds_each": self._costs[operation] / FEMTOSECONDS,
                "seconds": self._costs[operation] * times / FEMTOSECONDS,
                "charged": 0.0
                if operation in self._uncharged
                else float(self._shares.get(operation, 1)),
                **self._energy(operation, times),
            }
            for operation, times in sorted(self.counts.items())
        ]

    def _energy(self, operation: str, times: int) -> dict[str, float]:
        if (joules := self._joules.get(operation)) is None:
            return {}
        return {"joules_each": joules, "joules": joules * times}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the identity of what they were charged by, as values for JSON."""
        return {
            "counts": self.counts,
            "costs_sha256": self._costs_sha256(),
            "policy": self.policy,
            "uncharged": sorted(self._uncharged),
            "shares": self._shares,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved account stopped, to the last digit.

        Raises:
            ValueError: it was saved under other costs or another policy, or its counts are not
                whole numbers of known operations. Nothing is changed then.
        """
        expected = self.state_dict()
        if state.keys() != expected.keys():
            raise ValueError(
                f"no saved account: it has {', '.join(map(str, state)) or 'nothing'} where "
                f"{', '.join(expected)} are expected"
            )
        for key in ("policy", "uncharged", "shares"):
            if state[key] != expected[key]:
                raise ValueError(
                    f"the saved account was charged with {key} {state[key]!r}, this one has "
                    f"{expected[key]!r}: resume with the policy and shares that the run began with"
                )
        if state["costs_sha256"] != expected["costs_sha256"]:
            raise ValueError(
                "the saved account was charged by other costs than this one's: resume with the "
                "reference profile that the run began with"
            )
        resumed = dict(state["counts"])
        for operation, times in resumed.items():
            if operation not in self._prices or not isinstance(times, int) or times < 0:
                raise ValueError(
                    f"the saved account is damaged: {operation!r} ran {times!r} times in it"
                )
        self.femtoseconds = self.cost_femtoseconds(resumed)
        self._counts = {name: resumed.get(name, 0) for name in self._costs}

    def _costs_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self._costs, sort_keys=True).encode()).hexdigest()


def _cost(operation: str, seconds: float) -> int:
    try:
        return to_femtoseconds(seconds)
    except ValueError as error:
        raise ValueError(f"the cost of {operation!r} is {error}; an operation is never free") from (
            error
        )
