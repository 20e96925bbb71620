"""Weights of checkpoints in their average, one by one or by the decay that they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


class ArgumentError(ValueError):
    """An argument that would be wrong for any files."""


def decay_factors(profile: str, n: int, decay: float | None = None) -> list[float]:
    """Return w_1 ... w_(n-1), by which a decay profile scales the updates between n checkpoints.

    "linear" is 1 - i/n and "1-sqrt" is 1 - sqrt(i/n): the rate would reach zero one checkpoint
    after the newest. "ema" is 1 - decay**(n - i), the moving average that starts at the oldest.
    """
    if (profile == "ema") != (decay is not None):
        raise ArgumentError(f'weights "ema" and a decay go together: {profile!r}, decay {decay}')
    if decay is not None and not 0 <= decay < 1:
        raise ArgumentError(f"decay must be in [0, 1): {decay}")
    steps = range(1, n)
    if profile in ("uniform", "linear"):  # the uniform mean is a linear decay
        return [1 - i / n for i in steps]
    if profile == "1-sqrt":
        return [1 - math.sqrt(i / n) for i in steps]
    if decay is not None:
        return [1 - decay ** (n - i) for i in steps]
    raise ArgumentError(f'weights must be "uniform", "linear", "1-sqrt" or "ema": {profile!r}')


def merge_weights(factors: Sequence[float]) -> list[float]:
    """Return weights c_0 ... c_k, oldest first, that scale the updates by factors w_1 ... w_k.

    c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k (WSM, arXiv 2507.17634, theorem 3.1).
    """
    return [a - b for a, b in pairwise((1.0, *factors, 0.0))]


def checked_weights(weights: str | Sequence[float], decay: float | None, n: int) -> Sequence[float]:
    """Return the weights of n checkpoints, oldest first."""
    if isinstance(weights, str):
        return merge_weights(decay_factors(weights, n, decay))
    if decay is not None:
        raise ArgumentError(f'a decay goes with weights "ema" only: {decay}')
    if len(weights) != n or not all(weight >= 0 for weight in weights):
        raise ArgumentError(f"{n} weights from 0 on are needed: {list(weights)}")
    if not 0 < sum(weights) < math.inf:
        raise ArgumentError(f"the sum of weights must be above 0 and finite: {list(weights)}")
    return weights
