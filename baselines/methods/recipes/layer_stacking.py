"""Layer stacking: a recipe whose model begins with few blocks, and grows by copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Range, check_share
from baselines.methods.recipes import blocks
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.workloads.base import Batch, Workload
from timing import Operation


class LayerStacking(Recipe):
    """Trains the first blocks of a model, and copies them onto the next ones when it is time."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, workload: Workload, part: LayerStackingPart
    ) -> None:
        super().__init__(model, optimizer, workload)
        assert workload.blocks is not None
        self.part, self.blocks_of, self.blocks = part, workload.blocks, workload.blocks(model)
        blocks.refuse_unlike(self.blocks, workload.name)
        self.depths = part.depths(len(self.blocks))
        self.depth, self.count = self.depths[0], len(self.blocks)
        self.copied = optimizer if part.copy_state else None
        self.shape(model)

    def shape(self, model: nn.Module) -> None:
        """Leave out the blocks of a model that are no part of it yet."""
        blocks.keep_first(self.depth, self.blocks_of(model))

    def step(self, batches: Iterator[Batch], spent: float) -> Step:
        """Train the blocks that there are, then grow if it is time."""
        before, loss = self.depth, self.train(partial(next, batches), self.depth)
        due = [to for to in self.depths if before < to <= self.part.depth_at(spent, self.count)]
        for to in due:
            blocks.stack(self.blocks, self.depth, to, self.copied)
            self.depth = to
        self.shape(self.model)
        began = blocks.names_in(self.model, self.blocks[before : self.depth]) if due else ()
        copied = (blocks.copy_to(to, self.count) for to in due)
        return Step(("load_data", blocks.step_at(before, self.count), *copied), loss, began=began)

    def train(self, batch: Callable[[], Batch], depth: int) -> Tensor:
        """Run a training step through the first blocks; returns the loss."""
        self.depth = depth
        self.shape(self.model)
        return training_step(self.workload, self.network, self.optimizer, batch())

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a step at each depth, and the copying from each to the next."""
        at, train = blocks.step_at, partial(self.train, batch)
        steps = {at(depth, self.count): Operation(partial(train, depth)) for depth in self.depths}
        return steps | blocks.copyings(self.blocks, self.depths, self.copied)

    def state_dict(self) -> dict[str, Any]:
        """Return how many blocks there are."""
        return {"depth": self.depth}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with as many."""
        super().load_state_dict(state)
        self.depth = state["depth"]
        self.shape(self.model)


@dataclass(frozen=True)
class LayerStackingPart(RecipePart):
    """Layer stacking (Gong et al., ICML 2019, Algorithm 1), settings of No Train No Gain.

    Of L blocks the first L/4 are trained, then L/2, then all: block i is copied onto block i + n,
    and n doubles. Charges for each update `load_data`, and `stacked_step_K_of_L` through K blocks
    or `train_step` through all; `stack_to_K_of_L` where it grows. Needs `blocks`, `num_blocks`.

    Attributes:
        quarter: the share of the budget in which a quarter of the blocks is trained.
        half: that in which a half is, after it.
        copy_state: whether the optimizer's state of a block is copied too; else it begins anew.
    """

    name = "layer-stacking"
    title = "Layer stacking"
    space = {"quarter": Range(0.05, 0.3), "half": Range(0.05, 0.4)}
    needs = ("blocks",)
    depends_on_spent = True
    grows = True

    quarter: float = 0.125
    half: float = 0.175
    copy_state: bool = True

    def __post_init__(self) -> None:
        both = {"quarter + half": self.quarter + self.half}
        check_share(quarter=self.quarter, half=self.half, **both)

    def depth_at(self, spent: float, count: int) -> int:
        """Return how many of so many blocks are to be trained, at this fraction of the budget."""
        passed = (spent >= self.quarter) + (spent >= self.quarter + self.half)
        return blocks.quarter_half_and_all(count)[passed]

    def depths(self, count: int) -> list[int]:
        """Return all these numbers, in order; raises MethodError where nothing can grow."""
        return sorted({self.depth_at(spent, count) for spent in (0.0, self.quarter, 1.0)})

    def step_kinds(self, workload: Workload) -> list[Mapping[str, int]]:
        """Return a kind for each number of blocks, with all copying that may follow it."""
        count = workload.num_blocks
        return blocks.kinds_of_step(self.depths(count), count)

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> LayerStacking:
        """Return the recipe, with the workload's optimizer."""
        return LayerStacking(model, workload.make_optimizer(model, learning_rate), workload, self)
