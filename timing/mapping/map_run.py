"""What a training that ran elsewhere is in the RST of a reference machine.

Exact where the reference has every operation of the same workload: RST counts operations, wherever
they ran. Where it has some, the others are estimated by the ratio of reference to measured seconds
that those have. Between two machines that ratio is not one number (0.93 to 1.88 by operation, on
two that were tried), so the interval is that of one more operation, and wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from timing.calibration.profile import Profile, ProfileError
from timing.calibration.uncertainty import rst_interval
from timing.mapping.measured_run import MeasuredRun, RunError
from timing.rst.policy import Policy, uncharged
from timing.statistics import CONFIDENCE, Interval, prediction_interval


@dataclass(frozen=True)
class MappedOperation:
    """One operation of a run on the reference.

    Attributes:
        count: how often it ran.
        here_seconds: its median where it ran; None if that was not measured.
        reference_seconds: its cost on the reference, or what that is estimated to be; None for one
            that is not charged, and that the reference lacks.
        is_estimate: whether it is estimated.
        charged: whether the policy charges it.
    """

    count: int
    here_seconds: float | None
    reference_seconds: float | None
    is_estimate: bool
    charged: bool


@dataclass(frozen=True)
class MappedRun:
    """A run in the RST of a reference.

    Attributes:
        operations: by name.
        rst: reference seconds, with their interval.
        is_exact: whether none that is charged is estimated.
    """

    operations: Mapping[str, MappedOperation]
    rst: Interval
    is_exact: bool


def map_run(run: MeasuredRun, profile: Profile, policy: Policy = "algoperf") -> MappedRun:
    """Return the RST of a run on the machine of a profile.

    Args:
        run: of the same workload, wherever it ran.
        profile: of the reference machine.
        policy: which operations are charged.

    Raises:
        ProfileError: the profile is of another workload, or has none of the operations.
        RunError: a charged operation that the profile lacks was not measured, or none that it has.
        ValueError: there is no such policy.
    """
    profile.require_workload(run.workload)
    left_out = uncharged(policy)
    known = {name: one for name, one in run.operations.items() if name in profile.seconds}
    if not known:
        raise ProfileError(
            f"the reference profile has none of the run's operations, {', '.join(run.operations)} "
            f"(it has {', '.join(sorted(profile.seconds))}): nothing says how they compare"
        )
    missing = run.operations.keys() - known.keys() - left_out
    counts = {name: one.count for name, one in known.items()}
    exact = rst_interval(counts, profile, policy)
    factor = _factor(run, profile) if missing else Interval(1.0, 1.0, 1.0)
    mapped = {
        name: MappedOperation(
            count=one.count,
            here_seconds=one.median_seconds,
            reference_seconds=factor.estimate * _measured(run, name)
            if name in missing
            else profile.seconds.get(name),
            is_estimate=name in missing,
            charged=name not in left_out,
        )
        for name, one in run.operations.items()
    }
    # As in `rst_interval`, whose estimate is the mean over processes: here that of the medians.
    rst = math.fsum(
        one.count * (one.reference_seconds or 0.0) for one in mapped.values() if one.charged
    )
    here = math.fsum(run.operations[name].count * _measured(run, name) for name in missing)
    low, high = exact.low - exact.estimate, exact.high - exact.estimate
    if here:
        low -= here * (factor.estimate - factor.low)
        high += here * (factor.high - factor.estimate)
    return MappedRun(mapped, Interval(rst, max(0.0, rst + low), rst + high), not missing)


def _factor(run: MeasuredRun, profile: Profile) -> Interval:
    """Return reference seconds over measured ones, as one more operation would have it."""
    ratios = [
        profile.seconds[name] / one.median_seconds
        for name, one in run.operations.items()
        if name in profile.seconds and one.median_seconds is not None
    ]
    if not ratios:
        raise RunError(
            "no operation was measured that the reference has, so nothing says how the two "
            "machines compare: time train_step, too"
        )
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) == 1:
        return Interval(ratios[0], 0.0, math.inf)
    found = prediction_interval(logs, CONFIDENCE)
    return Interval(math.exp(statistics.fmean(logs)), math.exp(found.low), _exp(found.high))


def _measured(run: MeasuredRun, name: str) -> float:
    seconds = run.operations[name].median_seconds
    if seconds is None:
        raise RunError(
            f"the reference has no cost for {name!r}, and the run has no median of it to estimate "
            "one from: time it for more passes, or calibrate it on the reference"
        )
    return seconds


def _exp(log: float) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf
