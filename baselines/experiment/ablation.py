"""Plan an ablation of LAWA's k and interval: an ordinary comparison, of a method a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.experiment.plan import Plan
from baselines.methods.averagers.lawa import LawaPart
from baselines.methods.method import Method
from baselines.methods.names import find
from lawa_opt.schedule import Every

LIVE = "constant"


@dataclass(frozen=True)
class WindowConfig:
    """A window to try: k snapshots, one every so many steps."""

    k: int
    every: Every

    @property
    def method(self) -> Method:
        """Return LAWA of the constant rate with this window."""
        return find(f"lawa(k={self.k},every={self.every})")

    @property
    def name(self) -> str:
        """Return the method's name."""
        return self.method.name

    def __str__(self) -> str:
        return f"k={self.k} every={self.every}"


def methods_of(configs: Sequence[WindowConfig]) -> tuple[Method, ...]:
    """Return the live weights and a method for each window, which follow one training a seed.

    Those of one interval in steps share a window, of the longest k. A reading is charged as one of
    the longest window of all, for which the profile is: a little too much for the shorter ones.

    Raises:
        ValueError: there is none, or one of them twice.
    """
    if not configs or len(set(configs)) < len(configs):
        raise ValueError(f"an ablation wants windows, each once: {', '.join(map(str, configs))}")
    return (find(LIVE), *(config.method for config in configs))


def configs_of(plan: Plan) -> list[WindowConfig]:
    """Return the windows of a plan that is an ablation; none of any other plan.

    An ablation chooses, so it does not read the test part.
    """
    first, *others = plan.methods
    windows = [method.averager for method in others]
    configs = [WindowConfig(w.k, w.every) for w in windows if isinstance(w, LawaPart)]
    if plan.read_test or first.name != LIVE or not configs or len(configs) < len(others):
        return []
    return configs if [config.name for config in configs] == [m.name for m in others] else []
