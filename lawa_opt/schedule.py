"""After which steps a snapshot is due."""

from numbers import Real
from typing import Literal

Every = int | Literal["auto", "manual"]


class CollectSchedule:
    """Counts optimizer steps and says after which of them a snapshot is due.

    Steps count from 1 and a snapshot is taken after the update, so that a reading at step t can
    include the weights of step t. All but `k` may be set at any time; `enabled = False` switches
    collecting off while steps are still counted.

    Attributes:
        every: optimizer steps between two collects (freq in the paper's code, nu in 2502.06761);
            "auto" keeps the k snapshots spread over about the latest `horizon` of training so far,
            which needs no knowledge of its length and collects ever more rarely: about
            (k / horizon) * (1 + ln(horizon * t / k)) times in t steps; "manual" leaves it to
            `collect()`.
        k: snapshots in the window.
        horizon: the share of the steps so far that an "auto" window reaches back.
        start: the first step that may be collected.
        enabled: False to count steps without collecting.
        restart_every: optimizer steps between two restarts from the average, None for no restart.
        steps: optimizer steps so far.
        last_collect: the step of the newest snapshot, 0 before the first.

    Raises:
        ValueError: a value out of its range, here or set later; nothing has been changed.
        AttributeError: `k` is set later.
    """

    def __init__(
        self,
        every: Every = "auto",
        k: int = 5,
        horizon: float = 0.1,
        start: int = 1,
        restart_every: int | None = None,
    ) -> None:
        self._k = k
        self.every = every
        self.horizon = horizon
        self.start = start
        self.restart_every = restart_every
        self.enabled = True
        self.steps = 0
        self.last_collect = 0

    def __repr__(self) -> str:
        values = (f"{name.lstrip('_')}={value!r}" for name, value in vars(self).items())
        return f"CollectSchedule({', '.join(values)})"

    @property
    def every(self) -> Every:
        """Optimizer steps between two collects, "auto" or "manual"."""
        return self._every

    @every.setter
    def every(self, every: Every) -> None:
        if not (every in ("auto", "manual") or _is_count(every)):
            raise ValueError(
                f'every must be a whole number of steps from 1, "auto" or "manual": {every!r}'
            )
        self._every = every

    @property
    def k(self) -> int:
        """Snapshots in the window."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        raise AttributeError(
            f"k cannot be set to {k!r}: the window has {self._k} slots. averaged(k=j) reads "
            "fewer; for more, make another LAWA"
        )

    @property
    def horizon(self) -> float:
        """The share of the steps so far that an "auto" window reaches back."""
        return self._horizon

    @horizon.setter
    def horizon(self, horizon: float) -> None:
        if not _is_share(horizon):
            raise ValueError(f"horizon must be a share of training in (0, 1]: {horizon!r}")
        self._horizon = horizon

    @property
    def start(self) -> int:
        """The first step that may be collected."""
        return self._start

    @start.setter
    def start(self, start: int) -> None:
        if not _is_count(start):
            raise ValueError(f"start must be a step from 1 on: {start!r}")
        self._start = start

    @property
    def restart_every(self) -> int | None:
        """Optimizer steps between two restarts from the average, None for no restart."""
        return self._restart_every

    @restart_every.setter
    def restart_every(self, restart_every: int | None) -> None:
        if not (restart_every is None or _is_count(restart_every)):
            raise ValueError(
                f"restart_every must be a whole number of steps from 1, or None: {restart_every!r}"
            )
        self._restart_every = restart_every

    @property
    def enabled(self) -> bool:
        """False to count steps without collecting."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise ValueError(f"enabled must be True or False: {enabled!r}")
        self._enabled = enabled

    def step(self) -> bool:
        """Count one optimizer step and say whether a snapshot is due after it."""
        # Every step of a training comes through here, and a property costs as much as all the rest;
        # what is hardly ever false is asked last.
        steps = self.steps = self.steps + 1
        every = self._every
        if every == "auto":
            age = steps - self.last_collect
            due = age * self._k >= self._horizon * steps and age >= 1
        elif every == "manual":
            due = False
        else:
            due = steps % every == 0
        return due and self._enabled and steps >= self._start

    def is_restart(self) -> bool:
        """Return whether training is to restart from the average after the step just counted."""
        every = self._restart_every
        return every is not None and self._enabled and self.steps % every == 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and 0 < float(value) <= 1
