"""Weights of snapshots in their mean, from the steps after which they were taken.

A mean of snapshots theta_0 ... theta_k with weights c_0 ... c_k, whose sum is 1, is theta_0 plus
the updates since then, those between theta_(j-1) and theta_j scaled by w_j = c_j + ... + c_k. So
each decay of the learning rate has its weights: c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k
(WSM, arXiv 2507.17634, theorem 3.1).

Between two snapshots the decay goes on, so w_j is what it is midway between their steps: of one
factor for all updates there, this is nearest to a factor for each. The decay begins half a gap
before the oldest snapshot and ends half a gap after the newest. With equal gaps that is f(j / n) of
n snapshots, whatever f: their places alone would do, and a linear decay is the uniform mean.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from lawa_opt.messages import ArgumentError

# What a user may give: a name, a file, one weight a snapshot, or what makes these of the steps.
Weights = str | os.PathLike[str] | Sequence[float] | Callable[[Sequence[int]], Sequence[float]]
# Returns the weights of snapshots, oldest first, that were taken after these steps.
Weigh = Callable[[Sequence[int]], list[float]]

# The step of a snapshot from a file or state dict that does not tell it.
UNKNOWN_STEP = -1

# The factor of the rate, by the share of the decay that is over.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}
NAMES = f"uniform, {', '.join(DECAYS)}, ema:HALF_LIFE (in steps) or a file of weights"


def weighing(weights: Weights) -> Weigh:
    """Return the function from steps to weights that a name, file, sequence or function stands for.

    Args:
        weights: "uniform"; a decay, "linear", "1-sqrt" or "cosine"; "ema:HALF_LIFE", the moving
            average whose weights halve in so many steps, and begin at the oldest snapshot; the path
            of a file (see `_from_file`); one weight a snapshot, oldest first; or a function that
            makes these of the snapshots' steps, oldest first.

    Raises:
        ArgumentError: there is no such name or file, or it would be wrong for any snapshots. What
            is returned raises it where the weights do not fit the snapshots: of another number,
            negative, not finite, of sum 0; or a decay of snapshots whose steps are not known.
    """
    if isinstance(weights, str | os.PathLike):
        return _named(os.fspath(weights))
    if callable(weights):
        make = weights
        return lambda steps: _checked([float(each) for each in make(steps)], len(steps))
    try:
        given = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"weights must be {NAMES}, or numbers: {weights!r:.60}") from error
    _checked(given, len(given))
    return lambda steps: _checked(given, len(steps))


def is_one_by_one(weights: Weights) -> bool:
    """Return whether weights are given as such, not by what makes them of steps."""
    return not (isinstance(weights, str | os.PathLike) or callable(weights))


def _named(name: str) -> Weigh:
    if name == "uniform":
        return lambda steps: [1.0] * len(steps)
    if name in DECAYS:
        decay = DECAYS[name]
        return lambda steps: _merged(
            steps, lambda step, begin, end: decay((step - begin) / (end - begin))
        )
    if name == "ema" or name.startswith("ema:"):
        half_life = _half_life(name)
        return lambda steps: _merged(
            steps, lambda step, _, end: 1 - 0.5 ** ((end - step) / half_life)
        )
    return _from_file(name)


def _half_life(name: str) -> float:
    try:
        half_life = float(name.removeprefix("ema:"))
    except ValueError:
        half_life = math.nan
    if not 0 < half_life < math.inf:
        raise ArgumentError(f"weights must be ema:HALF_LIFE, in steps, such as ema:500: {name!r}")
    return half_life


def _merged(steps: Sequence[int], factor: Callable[[float, float, float], float]) -> list[float]:
    """Return the weights that scale the updates between snapshots by a factor of step and ends."""
    if len(steps) == 1:
        return [1.0]
    gaps = [after - before for before, after in pairwise(steps)]
    if min(steps) < 0 or min(gaps) < 0 or not any(gaps):
        raise ArgumentError(
            "weights by a decay need the steps of the snapshots, which are not known or not "
            f"ascending: {', '.join(map(str, steps))}; give one weight a snapshot instead"
        )
    begin, end = steps[0] - gaps[0] / 2, steps[-1] + gaps[-1] / 2
    factors = [factor((a + b) / 2, begin, end) for a, b in pairwise(steps)]
    return _checked([a - b for a, b in pairwise((1.0, *factors, 0.0))], len(steps))


def _from_file(path: str) -> Weigh:
    """Return what a text file says: one weight a line, oldest first; or a table with a header.

    Tables are `step,weight`, from which the rows of the snapshots' steps are taken, or
    `step,factor`: the rate at some steps as a share of its peak, which is linear in between.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 (a Path hides a trailing slash)
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(f"weights must be {NAMES}: {path!r}: {reason}") from error
    kind = lines[0].replace(" ", "") if lines else ""
    is_table = kind in ("step,weight", "step,factor")
    try:
        rows = [[float(cell) for cell in line.split(",")] for line in lines[is_table:]]
        if not rows or any(len(row) != 1 + is_table for row in rows):
            raise ValueError("wrong number of columns")
    except ValueError as error:
        raise ArgumentError(
            f"{path} must hold one weight a line, or rows under a header, step,weight or "
            f"step,factor: {error}"
        ) from error
    if not is_table:
        return weighing([row[0] for row in rows])
    table = {row[0]: row[1] for row in rows}
    if len(table) < len(rows):
        raise ArgumentError(f"{path} has a step twice")
    if kind == "step,weight":
        return lambda steps: _checked([_row(table, step, path) for step in steps], len(steps))
    known = sorted(table)
    return lambda steps: _merged(steps, lambda step, *_: _between(known, table, step, path))


def _row(table: dict[float, float], step: int, path: str) -> float:
    if step not in table:
        raise ArgumentError(f"{path} has no weight for the snapshot of step {step}")
    return table[step]


def _between(known: Sequence[float], table: dict[float, float], step: float, path: str) -> float:
    place = bisect_right(known, step)
    if step == known[-1]:
        return table[step]
    if not 0 < place < len(known):
        raise ArgumentError(
            f"{path} has factors of steps {known[0]:g} to {known[-1]:g}, and {step:g} is asked for"
        )
    low, high = known[place - 1 : place + 1]
    return table[low] + (table[high] - table[low]) * (step - low) / (high - low)


def _checked(weights: list[float], n: int) -> list[float]:
    if len(weights) != n or not all(weight >= 0 for weight in weights):
        raise ArgumentError(f"{n} weights from 0 on are needed, one a snapshot: {weights}")
    if not 0 < sum(weights) < math.inf:
        raise ArgumentError(f"the sum of weights must be above 0 and finite: {weights}")
    return weights
