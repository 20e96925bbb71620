"""Lion: a recipe that steps by the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from baselines.methods.part import MethodError, Range, check_positive, check_share
from baselines.methods.recipes.base import Recipe, RecipePart, Step
from baselines.methods.recipes.groups import groups_of
from baselines.workloads.base import Batch, Workload
from timing import Operation


class Lion(Recipe):
    """Trains with the package's optimizer, whose step is charged by a name of its own."""

    def step(self, batches: Iterator[Batch], spent: float) -> Step:
        """Run a step by the sign."""
        return Step(("load_data", "lion_step"), super().step(batches, spent).loss)

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a training step."""
        return {"lion_step": super().operations(batch)["train_step"]}


@dataclass(frozen=True)
class LionPart(RecipePart):
    """Lion (Chen et al., arXiv 2302.06675, Algorithm 2), by the package pytorch-optimizer.

        c = beta1 m + (1 - beta1) g;  w = w - lr (sign(c) + decay w);  m = beta2 m + (1 - beta2) g

    Charges `load_data` and `lion_step` for each update. Needs nothing of a workload. Of the
    workload's optimizer it takes over the groups of parameters with their rates and decays. Its
    authors take rates 3 to 10 times below those of AdamW, and decays as many times above, so that
    their product stays. Rates of SGD say little of it: tune.

    Attributes:
        rate: of the comparison's peak rate; the decay of a group is divided by it.
        beta1: between momentum and gradient, in the step.
        beta2: between them, in the momentum.
    """

    name = "lion"
    title = "Lion"
    space = {"beta1": Range(0.8, 0.98), "beta2": Range(0.95, 0.999)}
    step_operations = {"load_data": 1, "lion_step": 1}

    rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        check_share(beta1=self.beta1, beta2=self.beta2)
        check_positive(rate=self.rate)

    @property
    def rate_factor(self) -> float:
        """Return the setting `rate`."""
        return self.rate

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> Lion:
        """Return the recipe, with the package's optimizer in the place of the workload's.

        Raises:
            MethodError: the package is not installed.
        """
        try:
            from pytorch_optimizer import Lion as Optimizer
        except ImportError as error:
            raise MethodError(
                f"lion is trained by a package ({error}): pip install pytorch-optimizer"
            ) from error
        groups = groups_of(workload, model, learning_rate, self.rate)
        return Lion(model, Optimizer(groups, betas=(self.beta1, self.beta2)), workload)
