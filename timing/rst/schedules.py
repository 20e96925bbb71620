"""Learning-rate factors as functions of the fraction of the budget spent.

Each takes a fraction from 0 to 1 and gives the factor of the peak rate; beyond either end it keeps
the value there, so a step past the budget never trains at a negative rate. They fit any optimizer:

    LambdaLR(optimizer, lambda _: cosine(budget.spent(account)))
    LambdaLR(optimizer, lambda _: warm_up(cosine, 0.05)(budget.spent(account)))
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(fraction: float) -> float:  # noqa: ARG001
    """Keep the peak rate to the end."""
    return 1.0


def linear(fraction: float) -> float:
    """Fall linearly from the peak to zero at the end of the budget: the fully decayed rate."""
    return 1.0 - _clamped(fraction)


def cosine(fraction: float) -> float:
    """Fall by half a cosine from the peak to zero (Loshchilov and Hutter, arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * _clamped(fraction)))


def one_minus_sqrt(fraction: float) -> float:
    """Fall by 1 - sqrt(fraction), steep at first (Hägele et al., arXiv 2405.18392, a cooldown)."""
    return 1.0 - math.sqrt(_clamped(fraction))


def warm_up(schedule: Schedule, fraction: float) -> Schedule:
    """Return a schedule that first rises linearly from zero, over this fraction of the budget.

    The schedule itself then has what is left of the budget, from its beginning to its end.

    Raises:
        ValueError: the fraction is not in [0, 1).
    """
    _check("warm-up", fraction)

    def warmed_up(spent: float) -> float:
        if spent < fraction:
            return schedule(0.0) * _clamped(spent / fraction)
        return schedule(_clamped((spent - fraction) / (1 - fraction)))

    return warmed_up


def warm_up_stable_decay(
    warm_up_fraction: float, decay_fraction: float, decay: Schedule = linear
) -> Schedule:
    """Return a schedule: up from zero, the peak rate, a decay over the last part of the budget.

    Hu et al., arXiv 2404.06395; `decay` may be any schedule, `one_minus_sqrt` is often best.

    Raises:
        ValueError: the fractions are not in [0, 1), or leave nothing between them.
    """
    _check("warm-up", warm_up_fraction)
    _check("decay", decay_fraction)
    if warm_up_fraction + decay_fraction > 1:
        raise ValueError(
            f"a warm-up of {warm_up_fraction:g} and a decay of {decay_fraction:g} are more than "
            "the budget"
        )
    begin = 1 - decay_fraction

    def scheduled(spent: float) -> float:
        if spent < warm_up_fraction:
            return _clamped(spent / warm_up_fraction)
        if spent <= begin:
            return 1.0
        return decay(_clamped((spent - begin) / decay_fraction))

    return scheduled


def _check(part: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"a {part} takes a fraction of the budget in [0, 1), not {fraction!r}")


def _clamped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)
