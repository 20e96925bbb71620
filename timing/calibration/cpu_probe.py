"""A probe of the processor's speed just now, which no counter of a virtual machine tells.

Its cores may be halves of real ones. While a neighbour on the same host computes on the other half,
all work here takes up to twice as long; neither the load nor the stolen time shows it. Fixed work,
timed again and again, does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TypeVar

# Some 0.2 ms: little beside a training step, and long enough to tell a tenth.
ADDITIONS = 5000
# Undisturbed, a probe keeps within 5%, and within 20% after vector instructions that lower the
# clock, as they do in training; beside a neighbour it takes 1.5 to 2 times as long.
MAX_SLOWDOWN = 1.3

_T = TypeVar("_T")


def cpu_probe_seconds() -> float:
    """Return the processor seconds that a fixed piece of work takes just now."""
    begin = time.thread_time()
    total = 0
    for number in range(ADDITIONS):
        total += number
    return time.thread_time() - begin


def undisturbed_probe(probes: Sequence[float]) -> float:
    """Return what a probe takes undisturbed, as far as these show: the fastest tenth of them.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(probes) < 2:
        raise ValueError(f"an undisturbed probe shows in two at the least, not {len(probes)}")
    return statistics.quantiles(probes, n=10, method="inclusive")[0]


def is_disturbed(probe: float, undisturbed: float) -> bool:
    """Return whether the processor ran slower than of its own accord."""
    return probe > MAX_SLOWDOWN * undisturbed


def drop_disturbed(
    samples: Sequence[tuple[float, _T]], known_probe: float | None = None
) -> list[_T]:
    """Return the samples that were taken on an undisturbed processor, in their order.

    Args:
        samples: two or more; each with what the probe took beside it, the slower of before and
            after.
        known_probe: what the probe is known to take on this machine, if it is.

    Raises:
        ValueError: there are fewer than two.
    """
    undisturbed = undisturbed_probe([probe for probe, _ in samples])
    if known_probe is not None:
        undisturbed = min(undisturbed, known_probe)
    return [sample for probe, sample in samples if not is_disturbed(probe, undisturbed)]
