"""Read the mean of the k latest snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from baselines.methods.averagers.base import (
    CALIBRATE_COLLECT_EVERY,
    CALIBRATE_READING_EVERY,
    Averager,
    AveragerPart,
)
from baselines.methods.part import Range
from baselines.workloads.base import Workload
from lawa_opt import LAWA
from lawa_opt.schedule import Every
from timing import Operation

# More would not fit into memory, or into a training.
MOST_SNAPSHOTS, MOST_STEPS = 10_000, 10**9


class _Windows(LAWA):
    """LAWA with windows of other intervals beside it, since none can be around another.

    Attributes:
        beside: they collect after a step of this one, if it is due for them.
    """

    def __init__(self, optimizer: Optimizer, k: int, every: Every, model: nn.Module) -> None:
        super().__init__(optimizer, k, every, buffers=model)
        self.beside: list[LAWA] = []

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step, and collect into the windows."""
        result = super().step(*args, **kwargs)
        for window in self.beside:
            if window.schedule.step():
                window.collect()
        return result

    def window_of(self, model: nn.Module, k: int, every: Every) -> LAWA:
        """Return a window that collects at these intervals and holds as many snapshots, or more."""
        for window in (self, *self.beside):
            # "auto" spreads its k snapshots over the latest tenth, so each k has steps of its own.
            held = window.schedule.k
            if window.schedule.every == every and (held == k or (every != "auto" and held > k)):
                return window
        self.beside.append(LAWA(self.base, k, every, buffers=model))
        return self.beside[-1]


class Lawa(Averager):
    """Averages the k latest snapshots, BatchNorm's running statistics included.

    The window is in the state dict of `optimizer`, a LAWA. Where several follow one training, those
    of one interval read the window of the longest.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        self.k = k
        windows = optimizer if isinstance(optimizer, _Windows) else None
        self.lawa = (
            windows.window_of(model, k, every) if windows else _Windows(optimizer, k, every, model)
        )
        super().__init__(model, windows or self.lawa)

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Say whether LAWA has collected in its step."""
        schedule = self.lawa.schedule
        return "collect" if schedule.last_collect == schedule.steps else None

    def begin_anew(self, names: Sequence[str]) -> None:
        """Forget the snapshots of these."""
        own = dict((*self.model.named_parameters(), *self.model.named_buffers()))
        self.lawa.window.forget([own[name] for name in names])

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model under `averaged()`; live until the first collect."""
        return self._averaged(), {"average": 1} if self.lawa.num_snapshots else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        newest = self.k if self.k < self.lawa.num_snapshots else None
        with self.lawa.averaged(newest, if_empty="live"):
            yield self.model

    def operations(self) -> Mapping[str, Operation]:
        """Return a collect, and the mean put into the model and taken out again."""

        def average() -> None:
            with self._averaged():
                pass

        return {
            "collect": Operation(self.lawa.collect, every=CALIBRATE_COLLECT_EVERY),
            "average": Operation(average, every=CALIBRATE_READING_EVERY),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the window, if it is not in the optimizer's state dict."""
        return {} if self.lawa is self.optimizer else {"window": self.lawa.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved window; raises as `Averager` says."""
        super().load_state_dict(state)
        if "window" in state:
            self.lawa.load_state_dict(state["window"])


@dataclass(frozen=True)
class LawaPart(AveragerPart):
    """Average the k latest snapshots (Kaddour, arXiv 2209.14981).

    Attributes:
        k: snapshots in the window.
        every: steps between two of them, or "auto".
    """

    name = "lawa"
    title = "LAWA"
    space = {"every": Range(1, 256, log=True, whole=True)}
    step_operations = {"collect": 1}
    evaluation_operations = {"average": 1}
    costs_depend_on = ("k",)

    k: int = 5
    every: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_SNAPSHOTS:
            raise ValueError(f"k must be from 1 to {MOST_SNAPSHOTS}: {self.k!s:.60}")
        if isinstance(self.every, int) and not 1 <= self.every <= MOST_STEPS:
            raise ValueError(
                f"every must be auto, or from 1 to {MOST_STEPS} steps: {self.every!s:.60}"
            )

    @property
    def copies(self) -> int:
        """Return the snapshots of the window."""
        return self.k

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> Lawa:  # noqa: ARG002
        """Return what follows a training."""
        return Lawa(model, optimizer, self.k, self.every)

    def for_calibration(self) -> LawaPart:
        """Return one that collects when it is told to."""
        return replace(self, every="manual")  # type: ignore[arg-type]
