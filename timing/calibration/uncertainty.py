"""The uncertainty of reference seconds and joules: chance in how the profile was measured.

The uncertainty lies between processes, not between the steps of one: an interval from all samples
pooled covers the truth a third of the time, one from the processes as often as it says. So each
process gives one total, and Student's t over these totals gives the interval.

How far the medians are from adding up to a real loop is no chance: it does not become less with
more processes. So the profile's additivity error is reported beside the interval, not in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from timing.calibration.profile import Profile
from timing.calibration.row import Calibration
from timing.rst.policy import Policy, uncharged
from timing.statistics import CONFIDENCE, Interval, mean_interval, ratio_interval


def rst_interval(
    counts: Mapping[str, float],
    profile: Profile,
    policy: Policy = "algoperf",
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return reference seconds of operations, with the chance in the profile's costs.

    Args:
        counts: how often each operation ran, such as `account.counts`.
        profile: the one they are charged by.
        policy: which of them are charged.
        confidence: of the interval.

    Returns:
        The processes' mean with its interval; from 0 to infinity if there was one process only,
        which says nothing of chance.

    Raises:
        KeyError: an operation has no cost.
        ValueError: there is no such policy, or the confidence is not between 0 and 1.
    """
    totals = [_total(counts, process, policy) for process in profile.processes]
    return _of_totals(totals, confidence)


def operation_ratio(
    operation: str, a: Profile, b: Profile, confidence: float = CONFIDENCE
) -> Interval:
    """Return charged seconds of an operation in `b` over those in `a`, two machines apart.

    Raises:
        KeyError: one of the profiles does not have the operation.
        ValueError: the confidence is not between 0 and 1.
    """
    seconds_a, seconds_b = (
        [process.seconds[operation] for process in profile.processes] for profile in (a, b)
    )
    return ratio_interval(seconds_a, seconds_b, confidence)


def rse_interval(
    counts: Mapping[str, float],
    profile: Profile,
    policy: Policy = "algoperf",
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return reference joules of operations (reference system energy, RSE), with their interval.

    Chance is that of the seconds in each process, and of the watts where several read them; it is
    widened by the bound of the counter.

    Args:
        counts: how often each operation ran, such as `account.counts`.
        profile: the one they are charged by.
        policy: which of them are charged.
        confidence: of the interval.

    Raises:
        KeyError: an operation that is charged has no joules.
        ValueError: there is no such policy, or the confidence is not between 0 and 1.
    """
    left_out = uncharged(policy)
    charged = {n: times for n, times in counts.items() if times and n not in left_out}
    watts = profile.watts
    if missing := sorted(charged.keys() - watts.keys()):
        raise KeyError(f"{missing[0]!r} has no joules on the reference machine")
    totals, bound = [], 0.0
    for process in profile.processes:
        own = process.energy.bursts if process.energy else {}
        seconds = process.seconds
        joules = {
            name: seconds[name] * (own[name].watts if name in own else watts[name])
            for name in charged
        }
        totals.append(math.fsum(joules[name] * times for name, times in charged.items()))
        if process.energy:
            bound = max([bound, *(process.energy.bound(name) for name in own if name in charged)])
    return _of_totals(totals, confidence, bound)


def watts_error(profile: Profile) -> float | None:
    """Return what the watts of operations add up to over those of the loops, less one.

    The median of the processes whose loops were long enough to be read; None where there is none,
    or an operation has no joules.
    """
    watts = profile.watts
    if watts.keys() < profile.costs.keys():
        return None
    found = []
    for process in profile.processes:
        if process.energy and process.energy.loop:
            took = {
                n: times * process.seconds[n] for n, times in process.energy.loop_counts.items()
            }
            joules = math.fsum(watts[name] * seconds for name, seconds in took.items())
            if seconds := math.fsum(took.values()):
                found.append(joules / seconds / process.energy.loop.watts - 1)
    return statistics.median(found) if found else None


def _of_totals(totals: Sequence[float], confidence: float, bound: float = 0.0) -> Interval:
    """Return the mean of the processes' totals and its interval, widened, never below 0."""
    found = mean_interval(totals, confidence)
    low, high = found.low * (1 - bound), found.high * (1 + bound)
    return Interval(found.estimate, max(0.0, low), high)


def _total(counts: Mapping[str, float], process: Calibration, policy: Policy) -> float:
    left_out = uncharged(policy)
    charged = process.seconds
    for operation in counts:
        if operation not in charged:
            raise KeyError(f"{operation!r} has no cost on the reference machine")
    return math.fsum(
        charged[operation] * times
        for operation, times in counts.items()
        if operation not in left_out
    )
