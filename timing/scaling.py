"""Scaled time: the fallback where an operation was measured and not counted. Always an estimate.

There is no single ratio between two machines: from operation to operation it ran from 0.93 to 1.88,
and the ratio of another workload missed by -49 to +171%. So a time is scaled by the ratio of the
same operation of the same workload, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from timing.calibration.profile import Profile
from timing.calibration.uncertainty import operation_ratio
from timing.statistics import Interval


@dataclass(frozen=True)
class ScaledEstimate:
    """Reference seconds by scaling, not by counting; says so wherever it is printed.

    Attributes:
        operation: what was measured.
        measured_seconds: on the machine of the profile it is scaled from.
        ratio: reference seconds to seconds there, for this operation.
    """

    operation: str
    measured_seconds: float
    ratio: Interval

    @property
    def estimated_seconds(self) -> float:
        """Reference seconds, by estimate."""
        return self.measured_seconds * self.ratio.estimate

    @property
    def low_seconds(self) -> float:
        """Lower end of the interval."""
        return self.measured_seconds * self.ratio.low

    @property
    def high_seconds(self) -> float:
        """Upper end of the interval."""
        return self.measured_seconds * self.ratio.high

    def __str__(self) -> str:
        return (
            f"about {self.estimated_seconds:.4g} s [{self.low_seconds:.4g}, "
            f"{self.high_seconds:.4g}] (ESTIMATE: scaled from {self.measured_seconds:.4g} s of "
            f"{self.operation} on another machine)"
        )


def scaled_seconds(
    seconds: float,
    operation: str,
    workload: Mapping[str, str | int | float],
    here: Profile,
    reference: Profile,
) -> ScaledEstimate:
    """Estimate reference seconds from seconds measured on another machine.

    Args:
        seconds: measured, of one or many runs of the operation.
        operation: what was measured.
        workload: the signature of what was measured.
        here: a profile of this workload on the machine where it was measured.
        reference: a profile of the same workload on the reference machine.

    Raises:
        ProfileError: a profile is of another workload, or lacks the operation.
        ValueError: the seconds are negative or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"not a finite number of seconds from 0: {seconds!r}")
    for profile in (here, reference):
        profile.require(workload, {operation})
    return ScaledEstimate(operation, seconds, operation_ratio(operation, here, reference))
