"""Which operations a budget is charged for: three named policies, after those who publish results.

A policy lists what is *not* charged. Whatever is in no list, such as an operation that a method of
yours adds, is charged under every policy: a name nobody thought of is never free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from timing.rst.operations import operations_for

Policy = Literal["algoperf", "ntng", "mlperf"]
"""The name of a policy."""

POLICIES: tuple[Policy, ...] = get_args(Policy)
"""The policies; the first is the default."""

UNCHARGED: Mapping[Policy, frozenset[str]] = {
    # The submission pays for its update, and for preparing the model that is evaluated; evaluation
    # and checkpoints are off its clock. AlgoPerf's clock also runs while the input pipeline keeps a
    # step waiting. That tells of disks rather than of methods, and RST counts no waiting.
    "algoperf": operations_for("beside training"),
    # No Train No Gain adds a cost to its counter for each training step (and, with RHO loss, for
    # each forward pass that selects) and nowhere else: validation, and all that is done for it,
    # leave the counter as it is. What runs in the loop itself, a collect or an EMA update, is part
    # of the step that it would time.
    "ntng": operations_for("beside training", "reported model"),
    # MLPerf's clock runs from the first touch of the data until the target is seen to be reached.
    "mlperf": frozenset(),
}


def uncharged(policy: Policy) -> frozenset[str]:
    """Return the operations that a policy counts and does not charge.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in UNCHARGED:
        raise ValueError(f"{policy!r} is no policy: choose one of {', '.join(POLICIES)}")
    return UNCHARGED[policy]
