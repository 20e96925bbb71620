"""Say what a recipe is, and train as the workload says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Part
from baselines.workloads.base import Batch, Workload
from timing import Operation


def training_step(
    workload: Workload, model: nn.Module, optimizer: Optimizer, batch: Batch
) -> Tensor:
    """Run one optimizer step; returns the loss, detached."""
    optimizer.zero_grad()
    loss = workload.loss(model, batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


class Step(NamedTuple):
    """What a step of a recipe ran.

    Attributes:
        operations: their names, in order; one that ran twice is there twice.
        loss: the mean training loss, detached; a scalar.
        updated: whether the weights were updated. Averagers and the learning-rate schedule follow
            updates alone.
        began: names of the parameters and buffers that the step has made part of the model after
            its update, where that grows. Averages of them begin anew.
    """

    operations: tuple[str, ...]
    loss: Tensor
    updated: bool = True
    began: tuple[str, ...] = ()


class Recipe:
    """Trains a model, a step at a time; this one as the workload says.

    Recipes of your own begin from it.

    Attributes:
        workload: model, data and loss.
        model: that is trained.
        network: the model to call for the loss: under `torchrun` it averages gradients over ranks.
        optimizer: the one to step. Averagers may put one around it before the first step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> None:
        self.workload = workload
        self.model = self.network = model
        self.optimizer = optimizer

    def step(self, batches: Iterator[Batch], spent: float) -> Step:  # noqa: ARG002
        """Draw as many batches as it needs, and update the weights once, or not at all.

        Args:
            batches: endless; each that is drawn is charged as `load_data`.
            spent: the fraction of the budget spent before this step.
        """
        loss = training_step(self.workload, self.network, self.optimizer, next(batches))
        return Step(("load_data", "train_step"), loss)

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return how calibration runs each operation of the part but `load_data`, in this order.

        Args:
            batch: gives the latest batch that was loaded.
        """

        def train_step() -> None:
            training_step(self.workload, self.network, self.optimizer, batch())

        return {"train_step": Operation(train_step)}

    def shape(self, model: nn.Module) -> None:
        """Have another model of the workload leave out what the model trained leaves out now.

        For one that is evaluated in its place, as an average of it. Nothing here.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return all it holds beyond the model's and the optimizer's own state dicts.

        Plain values and tensors, fit for `torch.load(weights_only=True)`.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the last bit.

        Raises:
            ValueError: it is of another recipe.
        """
        if state.keys() != (own := self.state_dict()).keys():
            raise ValueError(
                f"the saved recipe holds {', '.join(state) or 'nothing'} and this one "
                f"{', '.join(own) or 'nothing'}: it was saved by another method"
            )


@dataclass(frozen=True)
class RecipePart(Part):
    """A recipe, before there is a model; this one trains as the workload says.

    Attributes:
        step_operations: the most that one step can run, and how often.
        needs: what a workload must offer, by the names of `Workload`'s attributes.
        paid_once: operations that end before the first update, whose result other runs could use.
        one_process: why it cannot be trained over ranks; empty where it can.
        depends_on_spent: whether its steps change with what was spent. Methods of one that does
            not can share a training.
        grows: whether parameters become part of its model in mid-training, as `Step.began` tells.
    """

    step_operations: ClassVar[Mapping[str, int]] = {"load_data": 1, "train_step": 1}
    needs: ClassVar[tuple[str, ...]] = ()
    paid_once: ClassVar[tuple[str, ...]] = ()
    one_process: ClassVar[str] = ""
    depends_on_spent: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    @property
    def rate_factor(self) -> float:
        """Return what the peak rate of a comparison is multiplied by, the middle of tuning's too.

        That rate is the usual one of the workload's optimizer; another optimizer has its own.
        """
        return 1.0

    @property
    def charged_shares(self) -> Mapping[str, float]:
        """Return the share of the cost of operations that is charged, where it is not all."""
        return {}

    def step_kinds(self, workload: Workload) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return the most that one step can run on this workload, for each kind of step."""
        return (self.step_operations,)

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> Recipe:
        """Return the recipe that trains this model at this peak rate."""
        return Recipe(model, workload.make_optimizer(model, learning_rate), workload)
