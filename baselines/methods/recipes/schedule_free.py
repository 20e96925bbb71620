"""Schedule-Free training: a recipe that brings its schedule, and the weights to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baselines.methods.averagers.base import CALIBRATE_READING_EVERY, Averager, AveragerPart
from baselines.methods.averagers.batchnorm import update_bn
from baselines.methods.part import MethodError, Range, check_share
from baselines.methods.recipes.base import Recipe, RecipePart, Step
from baselines.methods.schedules import WarmUp
from baselines.workloads.base import Batch, Workload
from timing import Operation


class ScheduleFree(Recipe):
    """Trains with the package's optimizer, whose step is charged by a name of its own."""

    def step(self, batches: Iterator[Batch], spent: float) -> Step:
        """Run a step at the weights y."""
        return Step(("load_data", "schedule_free_step"), super().step(batches, spent).loss)

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a training step."""
        return {"schedule_free_step": super().operations(batch)["train_step"]}


class ScheduleFreeWeights(Averager):
    """Gives the model in the average weights x.

    After a reading the weights y are those of before, bit for bit: the package's own way there and
    back is off by a rounding. BatchNorm's statistics are recomputed with the weights x, as the
    package asks.

    Args:
        model: that is trained.
        optimizer: the package's.
        bn_batches: inputs that BatchNorm's statistics are recomputed from.
    """

    def __init__(self, model: nn.Module, optimizer: Any, bn_batches: Sequence[Tensor]) -> None:
        super().__init__(model, optimizer)
        self.package: Any = optimizer
        self.bn_batches = bn_batches

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model in the average weights x, its statistics up to date."""
        statistics = {"statistics": 1} if self.bn_batches else {}
        return self._averaged(recompute=True), {"swap": 1, **statistics}

    @contextmanager
    def _averaged(self, *, recompute: bool) -> Iterator[nn.Module]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        with torch.no_grad():
            before = [tensor.clone() for tensor in tensors]
        self.package.eval()
        try:
            if recompute and self.bn_batches:
                update_bn(self.model, self.bn_batches)
            yield self.model
        finally:
            self.package.train()
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    def operations(self) -> Mapping[str, Operation]:
        """Return a swap of the weights for their average and back, and the statistics if any."""

        def swap() -> None:
            with self._averaged(recompute=False):
                pass

        def statistics() -> None:
            update_bn(self.model, self.bn_batches)

        found = {"swap": Operation(swap, every=CALIBRATE_READING_EVERY)}
        if self.bn_batches:
            found["statistics"] = Operation(statistics, every=CALIBRATE_READING_EVERY)
        return found


@dataclass(frozen=True)
class ScheduleFreeWeightsPart(AveragerPart):
    """Evaluate the average weights that Schedule-Free keeps by itself."""

    name = "schedule-free-weights"
    title = "Schedule-Free's own average"
    evaluation_operations = {"swap": 1}

    @property
    def copies(self) -> int:
        """Return one: the weights y, during an evaluation."""
        return 1

    def max_evaluation_operations(self, workload: Workload) -> Mapping[str, int]:
        """Return a swap, and the statistics where a workload has batches for them."""
        return {"swap": 1, **({"statistics": 1} if workload.bn_batches else {})}

    def begin(self, model: nn.Module, optimizer: Any, workload: Workload) -> ScheduleFreeWeights:
        """Return what follows a training."""
        return ScheduleFreeWeights(model, optimizer, workload.bn_batches)


@dataclass(frozen=True)
class ScheduleFreePart(RecipePart):
    """Schedule-Free learning (Defazio et al., arXiv 2405.15682), by its authors' own package.

    The gradient is taken at y = (1 - beta) z + beta x, where z are the fast weights and x their
    average, which is what a reading gives. The package recommends a warm-up of the rate, no
    schedule beside it, and to tune rate and beta: rates 1 to 10 times those of AdamW, and 10 to 50
    times those of SGD with momentum. What is taken over of the workload's own optimizer:

    - AdamW, and Adam without weight decay: rate, second beta, eps and weight decay of each group,
      into AdamWScheduleFree. beta is in the place of the first one.
    - SGD: rate and weight decay of each group, into SGDScheduleFree. beta is in the place of its
      momentum.
    - Any other, or one of these with options that the package's own lack (amsgrad, maximize): the
      optimizer itself and all of its options, its momentum included, inside the package's
      experimental ScheduleFreeWrapper.

    Its authors recommend a warm-up of the rate and nothing else; 2% is that of their AlgoPerf
    entry.

    Attributes:
        beta: between the average and its fast weights.
    """

    name = "schedule-free"
    title = "Schedule-Free"
    space = {"beta": Range(0.8, 0.98)}
    step_operations = {"load_data": 1, "schedule_free_step": 1}
    brings = (WarmUp(0.02), ScheduleFreeWeightsPart())

    beta: float = 0.9

    def __post_init__(self) -> None:
        check_share(beta=self.beta)

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> ScheduleFree:
        """Return the recipe, with the package's optimizer in the place of the workload's.

        Raises:
            MethodError: the package is not installed.
        """
        try:
            from baselines.methods.recipes.schedule_free_optimizer import schedule_free
        except ImportError as error:
            raise MethodError(
                f"schedule-free is trained by its own package ({error}): pip install schedulefree"
            ) from error
        optimizer = schedule_free(workload.make_optimizer(model, learning_rate), self.beta)
        optimizer.train()
        return ScheduleFree(model, optimizer, workload)
