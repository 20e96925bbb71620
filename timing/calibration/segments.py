"""Passes through the loop of a calibration, and which of them are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from timing.calibration.disturbance import MAX_DISTURBED_SHARE
from timing.calibration.target import Operation

_T = TypeVar("_T")

FEWEST_SAMPLES = 2


@dataclass(frozen=True)
class Segment:
    """Passes that ran in a row, each operation timed, or all of them as a whole.

    Attributes:
        passes: by number; one, if its operations were timed.
        samples: seconds of each operation in it; None if timed as a whole.
        seconds: of all.
        probe: seconds that the processor's probe took, the slower of before and after.
        throttled: whether a GPU was, in it or in those beside it; None where nothing tells.
    """

    passes: range
    samples: Mapping[str, float] | None
    seconds: float
    probe: float
    throttled: bool | None = None


def due(operations: Mapping[str, Operation], number: int) -> list[str]:
    """Return the operations that run in the pass of this number, in their order."""
    return [name for name, operation in operations.items() if number % operation.every == 0]


def counts(operations: Mapping[str, Operation], segments: Sequence[Segment]) -> dict[str, int]:
    """Return how often each operation ran."""
    passes = [number for segment in segments for number in segment.passes]
    return dict(Counter(name for number in passes for name in due(operations, number)))


def wholes_of(segments: Sequence[Segment]) -> list[Segment]:
    """Return those that were timed as a whole."""
    return [segment for segment in segments if segment.samples is None]


def samples_of(
    operations: Mapping[str, Operation], segments: Sequence[Segment]
) -> dict[str, list[float]]:
    """Return the seconds of each operation where it was timed by itself."""
    found: dict[str, list[float]] = {name: [] for name in operations}
    for segment in segments:
        for name, seconds in (segment.samples or {}).items():
            found[name].append(seconds)
    return found


def rarest(operations: Mapping[str, Operation], segments: Sequence[Segment]) -> int:
    """Return how many samples there are of the operation that has the fewest."""
    return min(map(len, samples_of(operations, segments).values()))


def undisturbed(found: list[_T], free: list[_T]) -> tuple[list[_T], float]:
    """Return those undisturbed, or all where hardly any are, and the share that was disturbed."""
    # A single sample has no spread.
    share = 1 - len(free) / len(found) if len(free) > 1 or free == found else 1.0
    return (found if share > MAX_DISTURBED_SHARE else free), share


def unthrottled(
    operations: Mapping[str, Operation], segments: list[Segment]
) -> tuple[list[Segment], float | None]:
    """Return those without throttling, or all where they are too few, and the share with it.

    The share is 1 where they are too few, and None where nothing tells.
    """
    told = [segment for segment in segments if segment.throttled is not None]
    if not told:
        return segments, None
    share = sum(bool(segment.throttled) for segment in told) / len(told)
    free = [segment for segment in segments if not segment.throttled]
    if share == 0 or (
        share <= MAX_DISTURBED_SHARE
        and wholes_of(free)
        and rarest(operations, free) >= FEWEST_SAMPLES
    ):
        return free, share
    return segments, 1.0
