"""RHO-loss: a recipe that trains on examples whose loss is high and can be lowered."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Range, check_positive
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.methods.recipes.scoring import examples_of, score
from baselines.workloads.base import Batch, Workload, generator
from timing import Operation

# One in so many examples trains the model of irreducible losses, and nothing else.
HELD_OUT_EVERY = 5


class RhoLoss(Recipe):
    """Trains a model for the irreducible losses first, takes them, and then selects by them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        workload: Workload,
        part: RhoLossPart,
        learning_rate: float,
    ) -> None:
        super().__init__(model, optimizer, workload)
        assert workload.examples is not None
        self.examples, self.batches = workload.examples, part.batches
        self.size = len(next(workload.batches(0))[0])
        order = torch.randperm(self.examples.count, generator=generator(0))
        held_out = -(-len(order) // HELD_OUT_EVERY)
        self.held_out, rest = order[:held_out], order[held_out:]
        self.to_score = rest.split(self.size)
        self.training_steps = math.ceil(part.epochs * held_out / self.size)
        self.done = 0
        # Of examples that are held out it stays infinite: they are never chosen.
        self.irreducible = torch.full((self.examples.count,), math.inf)
        self.other = workload.make_model().train()
        self.other_optimizer = workload.make_optimizer(self.other, learning_rate)

    def step(self, batches: Iterator[Batch], spent: float) -> Step:  # noqa: ARG002
        """Prepare the irreducible losses; once they are there, select and train."""
        self.done += 1
        if self.done <= self.training_steps:
            return Step(("irreducible_step",), self.train_other(), updated=False)
        if (place := self.done - self.training_steps - 1) < len(self.to_score):
            ids = self.to_score[place]
            self.irreducible[ids] = score(self.workload, self.other, self.examples.get(ids))
            return Step(("irreducible_score",), self.irreducible[ids].mean(), updated=False)
        drawn = [next(batches) for _ in range(self.batches)]
        candidates = tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
        losses = torch.cat([self.score(batch) for batch in drawn])
        chosen = examples_of(candidates, self.select(losses, candidates[2]))
        loss = training_step(self.workload, self.network, self.optimizer, chosen)
        scored = ("load_data", "score_by_id") * self.batches
        return Step((*scored, "train_step"), loss)

    def train_other(self) -> Tensor:
        """Train the other model on examples drawn from those held out; returns the loss."""
        places = torch.randint(len(self.held_out), (self.size,))
        batch = self.examples.get(self.held_out[places])
        return training_step(self.workload, self.other, self.other_optimizer, batch)

    def score(self, batch: Batch) -> Tensor:
        """Return the loss of each example as its id has it: what its irreducible loss is of."""
        return score(self.workload, self.model, self.examples.get(batch[2]))

    def select(self, losses: Tensor, ids: Tensor) -> Tensor:
        """Return the places of a batch's worth of the largest loss less irreducible loss."""
        reducible = losses - self.irreducible[ids]
        count = min(self.size, int((self.irreducible[ids] != math.inf).sum()))
        return reducible.topk(count).indices

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a step and a scoring of the other model, a scoring of this one, and a step."""

        def irreducible_score() -> None:
            score(self.workload, self.other, self.examples.get(self.to_score[0]))

        return {
            "irreducible_step": Operation(self.train_other),
            "irreducible_score": Operation(irreducible_score),
            "score_by_id": Operation(lambda: self.score(batch())),
            **super().operations(batch),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the other model, the irreducible losses, and how far they are."""
        return {
            "done": self.done,
            "irreducible": self.irreducible,
            "other": self.other.state_dict(),
            "other_optimizer": self.other_optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.done = state["done"]
        self.irreducible.copy_(state["irreducible"])
        self.other.load_state_dict(state["other"])
        self.other_optimizer.load_state_dict(state["other_optimizer"])


@dataclass(frozen=True)
class RhoLossPart(RecipePart):
    """RHO-loss (Mindermann et al., arXiv 2206.07137, equation 3 and Algorithm 1).

    A second model, trained on a fifth of the examples, gives the irreducible loss of each of the
    others. Then of `batches` drawn batches as many examples are trained on as one has: those with
    the largest loss less irreducible loss. Both losses are of the same input, the example's own by
    its id. Until the irreducible losses are there, the training loss told is the second model's.

    Charges, before the first update, `irreducible_step` for each step of the second model and
    `irreducible_score` for each of its forward passes; then for each update, `batches` times
    `load_data` and `score_by_id`, a forward pass, and a `train_step`. What comes before the first
    update is needed once for many runs: `il_charge` says how much of it each is charged. Needs
    `losses` and `examples` of a workload.

    Attributes:
        batches: drawn for each update.
        epochs: that the second model is trained for, over its fifth.
        il_charge: "full"; "none", as the paper charges it; or "shared:R", an R-th of it for each
            of R runs.
    """

    name = "rho-loss"
    title = "RHO-loss"
    space = {"batches": Range(2, 10, log=True, whole=True)}
    needs = ("losses", "examples")
    paid_once = ("irreducible_step", "irreducible_score")
    one_process = "each rank would have other irreducible losses"

    batches: int = 2
    epochs: float = 10.0
    il_charge: str = "full"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"none|full|shared:[1-9]\d{0,8}", self.il_charge):
            raise ValueError(
                f"il_charge must be none, full, or shared:R for R runs, such as shared:10: "
                f"{self.il_charge!r:.60}"
            )
        check_positive(epochs=self.epochs)
        if self.batches < 2:
            raise ValueError(f"batches must be a whole number from 2: {self.batches}")

    @property
    def charged_shares(self) -> Mapping[str, float]:
        """Return the share of the second model's cost that a run is charged."""
        _, _, runs = self.il_charge.partition(":")
        share = 1 / int(runs) if runs else float(self.il_charge == "full")
        return dict.fromkeys(self.paid_once, share)

    def step_kinds(self, workload: Workload) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return the steps of the second model, its scorings, and those that train."""
        select = {"load_data": self.batches, "score_by_id": self.batches, "train_step": 1}
        return {"irreducible_step": 1}, {"irreducible_score": 1}, select

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> RhoLoss:
        """Return the recipe, with the workload's optimizer for both models."""
        optimizer = workload.make_optimizer(model, learning_rate)
        return RhoLoss(model, optimizer, workload, self, learning_rate)
