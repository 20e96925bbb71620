"""How fast the processor runs just now, which no counter of a virtual machine tells.

Its cores may be halves of real ones. While a neighbour on the same host computes on the other half,
all work here takes up to twice as long; neither the load nor the stolen time shows it. Fixed work,
timed again and again, does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

# Some 0.2 ms: little beside a training step, and long enough to tell a tenth.
ADDITIONS = 5000
# A free processor keeps within 5% of its pace, and within 20% after vector instructions that lower
# its clock, as they do in training; a shared one takes 1.5 to 2 times as long.
SLOWED = 1.3


def pace_seconds() -> float:
    """Processor seconds that a fixed piece of work takes just now."""
    begin = time.thread_time()
    total = 0
    for number in range(ADDITIONS):
        total += number
    return time.thread_time() - begin


def own_pace(paces: Sequence[float]) -> float:
    """What the work takes undisturbed, as far as these seconds show: the fastest tenth of them.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(paces) < 2:
        raise ValueError(f"the own pace shows in two readings at the least, not {len(paces)}")
    return statistics.quantiles(paces, n=10, method="inclusive")[0]


def is_slowed(pace: float, own: float) -> bool:
    """Whether the processor runs slower than of its own accord."""
    return pace > SLOWED * own
