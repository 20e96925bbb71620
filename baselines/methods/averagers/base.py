"""Say what an averager is, and average nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from timing import Operation

# How often calibration runs what costs less often than every step, as the default settings do.
CALIBRATE_COLLECT_EVERY, CALIBRATE_READING_EVERY = 5, 20


class Averager(Protocol):
    """Follows one training, and gives the model to evaluate.

    Attributes:
        train_step: the operation that a training step with `optimizer` is charged as.
        step_operations: the most that following a step can add to it.
        evaluation_operations: the most that reading the average can cost.
    """

    train_step: str
    step_operations: Mapping[str, int]
    evaluation_operations: Mapping[str, int]

    @property
    def optimizer(self) -> Optimizer:
        """The one to step."""

    def after_step(self, spent: float) -> str | None:
        """Follow a step, at this fraction of the budget; returns the operation it took, if any."""

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return a context that gives the model to evaluate, and the operations that it costs."""

    def operations(self) -> Mapping[str, Operation]:
        """Return how calibration runs each operation that it adds, the training step left out.

        They run after training steps with `optimizer`, in this order.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return all it holds beyond the optimizer's and the model's own state dicts.

        Plain values and tensors, fit for `torch.load(weights_only=True)`. As in torch, tensors are
        references: save or copy it before the next step.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the last bit.

        Raises:
            ValueError: it is of another averager or model; nothing has been changed.
        """


class NoAveraging:
    """Averages nothing: the live weights. Other averagers, and those of your own, begin from it."""

    train_step = "train_step"
    step_operations: Mapping[str, int] = {}
    evaluation_operations: Mapping[str, int] = {}

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Do nothing."""
        return None

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model itself."""
        return nullcontext(self.model), {}

    def operations(self) -> Mapping[str, Operation]:
        """Return no operation."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that there is nothing to load."""
        check_keys(state, self.state_dict())


def check_keys(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse the state of another averager: one with other keys than one's own.

    Raises:
        ValueError: the keys differ.
    """
    if state.keys() != own.keys():
        raise ValueError(
            f"the saved averager holds {', '.join(state) or 'nothing'} and this one "
            f"{', '.join(own) or 'nothing'}: it was saved by another method"
        )
