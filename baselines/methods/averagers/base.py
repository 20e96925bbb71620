"""Say what an averager is, and average nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from baselines.methods.part import Part
from baselines.workloads.base import Workload
from timing import Operation

# How often calibration runs what costs less often than every step, as the default settings do.
CALIBRATE_COLLECT_EVERY, CALIBRATE_READING_EVERY = 5, 20


class Averager:
    """Follows one training, and gives the model to evaluate; this one averages nothing.

    Averagers of your own begin from it. One never changes the training that it follows.

    Attributes:
        model: that is trained.
        optimizer: the one to step: the training's own, or one around it.
        models: of its own, that `evaluation_model` may give in the place of `model`. Where that
            grows they are made as deep before each evaluation.
    """

    models: Sequence[nn.Module] = ()

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Follow an update, at this fraction of the budget; returns the operation it took, if any.

        Nothing here.
        """
        return None

    def begin_anew(self, names: Sequence[str]) -> None:
        """Forget what it has averaged of some parameters and buffers, by their names in the model.

        They were no part of the model before. What has no average yet is evaluated as it is. An
        averager that does not define this is refused where a model grows. Nothing here.
        """

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return a context that gives the model to evaluate, and the operations that it costs.

        Here the model that is trained, for nothing.
        """
        return nullcontext(self.model), {}

    def operations(self) -> Mapping[str, Operation]:
        """Return how calibration runs each operation of the part; none here.

        They run after training steps with `optimizer`, in this order.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all it holds beyond the optimizer's and the model's own state dicts.

        Plain values and tensors, fit for `torch.load(weights_only=True)`. As in torch, tensors are
        references: save or copy it before the next step.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the last bit.

        Raises:
            ValueError: it is of another averager or model; nothing has been changed.
        """
        check_keys(state, self.state_dict())


@dataclass(frozen=True)
class AveragerPart(Part):
    """An averager, before there is a model.

    Attributes:
        step_operations: the most that following one step can run, and how often.
        evaluation_operations: the most that one evaluation can run, and how often.
        costs_depend_on: settings that the costs of its operations depend on. The profile is of
            the largest of each among the methods compared.
    """

    step_operations: ClassVar[Mapping[str, int]] = {}
    evaluation_operations: ClassVar[Mapping[str, int]] = {}
    costs_depend_on: ClassVar[tuple[str, ...]] = ()

    @property
    def copies(self) -> int:
        """Return how many copies of the weights it holds, at the most."""
        return 0

    def max_evaluation_operations(self, workload: Workload) -> Mapping[str, int]:  # noqa: ARG002
        """Return the most that one evaluation can run on this workload."""
        return self.evaluation_operations

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> Averager:  # noqa: ARG002
        """Return the averager that follows a training of this model with this optimizer."""
        return Averager(model, optimizer)

    def for_calibration(self) -> AveragerPart:
        """Return a part whose averager does nothing in a step, for each is measured by itself."""
        return self


@dataclass(frozen=True)
class Live(AveragerPart):
    """Average nothing: the live weights."""

    name = "live"
    title = "live weights"


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
