"""Read the mean of the k latest snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.optim import Optimizer

from baselines.methods.averagers.base import (
    CALIBRATE_COLLECT_EVERY,
    CALIBRATE_READING_EVERY,
    NoAveraging,
)
from lawa_opt import LAWA
from lawa_opt.schedule import Every
from timing import Operation


class Lawa(NoAveraging):
    """Averages the k latest snapshots, BatchNorm's running statistics included.

    The window is in the state dict of `optimizer`, a LAWA.
    """

    step_operations: Mapping[str, int] = {"collect": 1}
    evaluation_operations: Mapping[str, int] = {"average": 1}
    optimizer: LAWA

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        super().__init__(model, LAWA(optimizer, k, every, buffers=model))

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Say whether LAWA has collected in its step."""
        schedule = self.optimizer.schedule
        return "collect" if schedule.last_collect == schedule.steps else None

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model under `averaged()`; live until the first collect."""
        return self._averaged(), self.evaluation_operations if self.optimizer.num_snapshots else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        with self.optimizer.averaged(if_empty="live"):
            yield self.model

    def operations(self) -> Mapping[str, Operation]:
        """Return a collect, and the mean put into the model and taken out again."""

        def average() -> None:
            with self._averaged():
                pass

        return {
            "collect": Operation(self.optimizer.collect, every=CALIBRATE_COLLECT_EVERY),
            "average": Operation(average, every=CALIBRATE_READING_EVERY),
        }
