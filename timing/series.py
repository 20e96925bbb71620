"""Profiles of workloads that differ in one number: a cost out of line with its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from timing.calibration.profile import Profile, ProfileError
from timing.calibration.warnings import ORDER_OF_MAGNITUDE


def check_series(profiles: Sequence[Profile], key: str) -> tuple[str, ...]:
    """Flag costs that are off by more than three times from what their neighbours predict.

    The prediction for a value is the line through its two neighbours in logarithms of value and
    cost. The cost furthest off is flagged and left out, and the rest is looked at again, so that
    one slip does not make its neighbours look wrong. The ends of a series have one neighbour only
    and are not judged.

    Args:
        profiles: three or more, whose workloads differ in `key` alone.
        key: of a positive number in the workload's signature, such as "layers".

    Returns:
        A sentence for each cost that is out of line; empty if there is none.

    Raises:
        ProfileError: the workloads differ in more than `key`, it is no positive number, two have
            the same, or there are fewer than three profiles.
    """
    by_value = {_value(profile, key): profile for profile in profiles}
    if len(by_value) < len(profiles):
        raise ProfileError(f"two of the profiles have the same {key}: they make no series")
    if len(by_value) < 3:
        raise ProfileError(f"a series needs three profiles or more, not {len(by_value)}")
    first = {**profiles[0].workload, "flops_per_step": None, key: None}
    for profile in profiles:
        other = {**profile.workload, "flops_per_step": None, key: None}
        if odd := [name for name in first | other if first.get(name) != other.get(name)]:
            raise ProfileError(
                f"the workloads of a series over {key} must not differ in {', '.join(odd)} too"
            )
    charged = {value: by_value[value].seconds for value in sorted(by_value)}
    found = []
    for operation in profiles[0].costs:
        costs = {
            value: seconds[operation] for value, seconds in charged.items() if operation in seconds
        }
        found += [f"{operation} at {key}={sentence}" for sentence in _out_of_line(costs)]
    return tuple(found)


def _value(profile: Profile, key: str) -> float:
    value = profile.workload.get(key)
    if isinstance(value, str) or value is None or not value > 0:
        raise ProfileError(f"{key}={value!r} is no positive number, so it orders no series")
    return float(value)


def _out_of_line(costs: dict[float, float]) -> list[str]:
    left = dict(costs)
    found = []
    while len(left) >= 3:
        values = list(left)
        predicted = {
            value: _interpolated(value, (before, left[before]), (after, left[after]))
            for before, value, after in zip(values, values[1:], values[2:], strict=False)
        }
        worst = max(predicted, key=lambda value: abs(math.log(left[value] / predicted[value])))
        factor = left[worst] / predicted[worst]
        if max(factor, 1 / factor) <= ORDER_OF_MAGNITUDE:
            break
        found.append(
            f"{worst:g} costs {left[worst]:.4g} s where its neighbours predict "
            f"{predicted[worst]:.4g} s ({factor:.2g} times): one of the three is wrong"
        )
        del left[worst]
    return found


def _interpolated(x: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    begin, end = math.log(low[0]), math.log(high[0])
    # The logarithms of values that hardly differ may be equal.
    share = (math.log(x) - begin) / (end - begin) if end > begin else 0.5
    return math.exp((1 - share) * math.log(low[1]) + share * math.log(high[1]))
