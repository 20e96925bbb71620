"""The windows that a study compares: of k checkpoints, of each or each second, with weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lawa_opt.messages import ArgumentError
from lawa_opt.weights_by_step import weighing


@dataclass(frozen=True)
class StudyWindow:
    """The k newest checkpoints, or of these each second, third, ..., and their weights.

    Attributes:
        k: checkpoints in the mean; 1 is the live weights.
        every: 1 for each checkpoint, 2 for each second one, and so on.
        weights: the name or file of their weights, as in `average_checkpoints`.
    """

    k: int = 1
    every: int = 1
    weights: str = "uniform"

    @property
    def is_live(self) -> bool:
        """Return whether this is no average but the newest checkpoint itself."""
        return self.k == 1

    @property
    def span(self) -> int:
        """Return how many of the newest checkpoints it reaches back over, with those left out."""
        return (self.k - 1) * self.every + 1

    def __str__(self) -> str:
        if self.is_live:
            return "live"
        every = f" every={self.every}" if self.every > 1 else ""
        return f"k={self.k}{every}{'' if self.weights == 'uniform' else ' ' + self.weights}"

    def weigh(self, steps: Sequence[int]) -> list[float]:
        """Return the weights of the newest checkpoints, as many as `span`, 0 for those left out."""
        places = range(len(steps) - 1, -1, -self.every)[::-1]
        weights = [0.0] * len(steps)
        taken = weighing(self.weights)([steps[place] for place in places])
        for place, weight in zip(places, taken, strict=True):
            weights[place] = weight
        return weights


LIVE = StudyWindow()


def study_windows(
    k: Iterable[int], every: Iterable[int], weights: Iterable[str]
) -> list[StudyWindow]:
    """Return all combinations, each once, after the live weights, which are always among them.

    Raises:
        ArgumentError: one is no list, a number is none from 1 on, or weights are none.
    """
    for name, given in (("k", k), ("every", every), ("weights", weights)):
        if isinstance(given, int | str):
            raise ArgumentError(f"{name} must be a list, as [{given!r}]: {given!r}")
    ks, everys, names = list(k), list(every), list(weights)
    for name, numbers in (("k", ks), ("every", everys)):
        if not numbers or any(type(n) is not int or n < 1 for n in numbers):
            raise ArgumentError(f"{name} must be whole numbers from 1: {numbers}")
    for each in names:
        weighing(each)
    made = [StudyWindow(n, m, w) for w in names for m in everys for n in ks if n > 1]
    if not made:
        raise ArgumentError("there is no window to study: give a k above 1 and weights")
    return list(dict.fromkeys([LIVE, *made]))
