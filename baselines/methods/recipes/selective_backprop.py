"""Selective backprop: a recipe that trains on the examples whose losses are high."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Range, check_positive
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.methods.recipes.scoring import examples_of, score
from baselines.workloads.base import Batch, Workload
from timing import Operation


class SelectiveBackprop(Recipe):
    """Scores a batch a step, and trains once it has kept enough examples for one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        workload: Workload,
        part: SelectiveBackpropPart,
    ) -> None:
        super().__init__(model, optimizer, workload)
        self.history, self.beta = part.history, part.beta
        # The latest losses, the oldest first, and the examples kept for the next update.
        self.losses = torch.empty(0)
        self.kept: list[Tensor] = []

    def step(self, batches: Iterator[Batch], spent: float) -> Step:  # noqa: ARG002
        """Score a batch, keep some of it, and train on as many as a batch has if there are."""
        batch = next(batches)
        size = len(batch[0])
        losses = score(self.workload, self.model, batch)
        self.keep(batch, self.is_kept(losses))
        if len(self.kept[0]) < size:
            return Step(("load_data", "score"), losses.mean(), updated=False)
        chosen = tuple(part[:size] for part in self.kept)
        self.kept = [part[size:] for part in self.kept]
        loss = training_step(self.workload, self.network, self.optimizer, chosen)
        return Step(("load_data", "score", "train_step"), loss)

    def is_kept(self, losses: Tensor) -> Tensor:
        """Return which examples are kept: each with the probability percentile^beta.

        The percentile is that of its loss among the latest, itself included; of equal losses the
        middle.
        """
        self.losses = torch.cat([self.losses, losses])[-self.history :]
        ranks = self.losses.sort().values
        below = torch.searchsorted(ranks, losses) + torch.searchsorted(ranks, losses, right=True)
        percentiles = below / (2 * len(ranks))
        return torch.rand(len(losses)) < percentiles**self.beta

    def keep(self, batch: Batch, is_kept: Tensor) -> None:
        """Put examples beside those kept so far, each as it was scored."""
        more = examples_of(batch, is_kept)
        before = self.kept or [part[:0] for part in more]
        self.kept = [torch.cat(parts) for parts in zip(before, more, strict=True)]

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return the scoring of a batch, and a training step."""
        scoring = Operation(lambda: score(self.workload, self.model, batch()))
        return {"score": scoring, **super().operations(batch)}

    def state_dict(self) -> dict[str, Any]:
        """Return the latest losses, and the examples kept for the next update."""
        return {"losses": self.losses, "kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.losses, self.kept = state["losses"], state["kept"]


@dataclass(frozen=True)
class SelectiveBackpropPart(RecipePart):
    """Selective-Backprop (Jiang et al., arXiv 1910.00762, equation 1 and Algorithm 1).

    An example is kept with the probability percentile^beta of its loss among the latest `history`
    losses; a batch of kept ones is trained on. Where losses are stationary one in beta + 1 is kept.

    Charges `load_data` and `score`, a forward pass, for each step, and `train_step` for those that
    update the weights. Needs `losses` of a workload.

    Attributes:
        beta: the larger, the fewer examples are kept.
        history: losses that percentiles are taken among.
    """

    name = "selective-backprop"
    title = "Selective backprop"
    space = {"beta": Range(0.5, 3)}
    step_operations = {"load_data": 1, "score": 1, "train_step": 1}
    needs = ("losses",)
    one_process = "each rank keeps examples of its own, and is ready for an update at other steps"

    beta: float = 1.0
    history: int = 5000

    def __post_init__(self) -> None:
        check_positive(beta=self.beta, history=self.history)

    def begin(
        self, model: nn.Module, workload: Workload, learning_rate: float
    ) -> SelectiveBackprop:
        """Return the recipe, with the workload's optimizer."""
        optimizer = workload.make_optimizer(model, learning_rate)
        return SelectiveBackprop(model, optimizer, workload, self)
