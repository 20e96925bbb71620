"""When a snapshot is collected."""

from dataclasses import dataclass
from typing import Literal

Every = int | Literal["auto", "manual"]


@dataclass
class Interval:
    """Counts optimizer steps and says after which of them a snapshot is due.

    Steps count from 1 and a snapshot is taken after the update, so that a reading at step t can
    include the weights of step t. The fields may be set at any time; `enabled = False` switches
    collecting off while steps are still counted.

    Attributes:
        every: optimizer steps between two collects (freq in the paper's code, nu in 2502.06761);
            "auto" keeps the k snapshots spread over about the latest `span` of training so far,
            which needs no knowledge of its length and collects ever more rarely: about
            (k / span) * (1 + ln(span * t / k)) times in t steps; "manual" leaves it to `collect()`.
        k: snapshots in the window.
        span: the share of the steps so far that an "auto" window reaches back.
        start: the first step that may be collected.
        enabled: False to count steps without collecting.
        step: optimizer steps so far.
        newest: the step of the newest snapshot, 0 before the first.
    """

    every: Every = "auto"
    k: int = 5
    span: float = 0.1
    start: int = 1
    enabled: bool = True
    step: int = 0
    newest: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not (
            self.every in ("auto", "manual") or (isinstance(self.every, int) and self.every >= 1)
        ):
            raise ValueError(
                f'every must be a whole number of steps from 1, "auto" or "manual": {self.every!r}'
            )
        if not 0 < self.span <= 1:
            raise ValueError(f"span must be a share of training in (0, 1]: {self.span!r}")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 1:
            raise ValueError(f"start must be a step from 1 on: {self.start!r}")

    def advance(self) -> bool:
        """Count one optimizer step and say whether a snapshot is due after it."""
        self.step += 1
        if self.every == "manual" or not self.enabled or self.step < self.start:
            return False
        if self.every == "auto":
            age = self.step - self.newest
            return age >= 1 and age * self.k >= self.span * self.step
        return self.step % self.every == 0
