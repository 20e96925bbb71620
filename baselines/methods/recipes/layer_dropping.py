"""Layer dropping: a recipe whose steps leave out some of a model's blocks, drawn anew each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Range, check_positive, check_share
from baselines.methods.recipes import blocks
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.workloads.base import Batch, Workload
from timing import Operation


class LayerDropping(Recipe):
    """Trains through the blocks that are drawn for a step."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, workload: Workload, part: LayerDroppingPart
    ) -> None:
        super().__init__(model, optimizer, workload)
        assert workload.blocks is not None
        self.blocks = workload.blocks(model)
        self.part = part

    def step(self, batches: Iterator[Batch], spent: float) -> Step:
        """Draw which blocks the batch goes through, and train them."""
        shares = self.part.shares(spent, len(self.blocks))
        is_kept = (torch.rand(len(shares)) < torch.tensor(shares)).tolist()
        loss = self.train(next(batches), is_kept, shares)
        return Step(("load_data", blocks.through(sum(is_kept), len(shares))), loss)

    def train(self, batch: Batch, is_kept: Sequence[bool], shares: Sequence[float]) -> Tensor:
        """Run a training step through some of the blocks; returns the loss."""
        with ExitStack() as stack:
            for block, kept, share in zip(self.blocks, is_kept, shares, strict=True):
                if kept:
                    handle = block.register_forward_hook(partial(blocks.scaled, share))
                    stack.callback(handle.remove)
                else:
                    stack.enter_context(blocks.left_out(block))
            return training_step(self.workload, self.network, self.optimizer, batch)

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a step through each number of blocks, as late in the budget."""
        count = len(self.blocks)
        shares = self.part.shares(1.0, count)

        def through(kept: int) -> None:
            self.train(batch(), [place < kept for place in range(count)], shares)

        return {blocks.through(n, count): Operation(partial(through, n)) for n in range(count + 1)}


@dataclass(frozen=True)
class LayerDroppingPart(RecipePart):
    """Progressive layer dropping (Zhang and He, arXiv 2010.13369, equations 2 to 6).

        theta(u) = keep + (1 - keep) exp(-gamma u), at the fraction u of the budget
        block i of L is dropped from a step with the probability (1 - theta) i / L

    What a kept block adds is divided by its probability of being kept, so that the expectation of
    its output is the output without dropping. A step has one draw, from seed and step. Evaluations
    go through all blocks.

    Charges `load_data` and `train_step_K_of_L` for each update, K the blocks that were kept: each
    is measured. Needs `blocks` and `num_blocks` of a workload.

    Attributes:
        keep: what theta falls to.
        gamma: how fast it does.
    """

    name = "layer-dropping"
    title = "Layer dropping"
    space = {"keep": Range(0.3, 0.9)}
    needs = ("blocks",)
    one_process = "the gradients of blocks that a step drops would be waited for"
    depends_on_spent = True

    keep: float = 0.5
    gamma: float = 100.0

    def __post_init__(self) -> None:
        check_share(keep=self.keep)
        check_positive(gamma=self.gamma)

    def shares(self, spent: float, count: int) -> list[float]:
        """Return the probability that each block is kept, at this fraction of the budget."""
        theta = self.keep + (1 - self.keep) * math.exp(-self.gamma * spent)
        return [1 - (1 - theta) * i / count for i in range(1, count + 1)]

    def step_kinds(self, workload: Workload) -> list[Mapping[str, int]]:
        """Return a kind for each number of blocks."""
        count = workload.num_blocks
        return [{"load_data": 1, blocks.through(kept, count): 1} for kept in range(count + 1)]

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> LayerDropping:
        """Return the recipe, with the workload's optimizer."""
        optimizer = workload.make_optimizer(model, learning_rate)
        return LayerDropping(model, optimizer, workload, self)
