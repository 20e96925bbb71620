"""RHO-loss: a recipe that trains on examples whose loss is high and can be lowered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import Range, check_positive
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.methods.recipes.irreducible import PAID_ONCE, IrreducibleLosses, charged_share
from baselines.methods.recipes.scoring import examples_of, score
from baselines.workloads.base import Batch, Workload
from timing import Operation


class RhoLoss(Recipe):
    """Takes the irreducible losses first, and then selects by them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        workload: Workload,
        batches: int,
        irreducible: IrreducibleLosses,
    ) -> None:
        super().__init__(model, optimizer, workload)
        self.batches, self.irreducible = batches, irreducible

    def step(self, batches: Iterator[Batch], spent: float) -> Step:  # noqa: ARG002
        """Prepare the irreducible losses; once they are there, select and train."""
        if not self.irreducible.are_there:
            operation, loss = self.irreducible.prepare()
            return Step((operation,), loss, updated=False)
        drawn = [next(batches) for _ in range(self.batches)]
        losses = torch.cat([self.score(batch) for batch in drawn])
        candidates = tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
        chosen = examples_of(candidates, self.irreducible.worthwhile(losses, candidates[2]))
        loss = training_step(self.workload, self.network, self.optimizer, chosen)
        scored = ("load_data", "score_by_id") * self.batches
        return Step((*scored, "train_step"), loss)

    def score(self, batch: Batch) -> Tensor:
        """Return the loss of each example as its id has it: what its irreducible loss is of."""
        return score(self.workload, self.model, self.irreducible.examples.get(batch[2]))

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return a step and a scoring of the second model, a scoring of this one, and a step."""
        own = {"score_by_id": Operation(lambda: self.score(batch()))}
        return {**self.irreducible.operations(), **own, **super().operations(batch)}

    def state_dict(self) -> dict[str, Any]:
        """Return what the irreducible losses are made from, and how far they are."""
        return self.irreducible.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.irreducible.load_state_dict(state)


@dataclass(frozen=True)
class RhoLossPart(RecipePart):
    """RHO-loss (Mindermann et al., arXiv 2206.07137, equation 3 and Algorithm 1).

    A second model, trained on a fifth of the examples, gives the irreducible loss of each other.
    Then of `batches` drawn batches as many examples are trained on as one has: those with the
    largest loss less irreducible loss, both of the example's own input by its id. Until the
    irreducible losses are there, the training loss told is the second model's.

    Charges, before the first update, `irreducible_step` for each step of the second model and
    `irreducible_score` for each of its forward passes, which many runs could share: `il_charge`
    says how much of it each is charged. Then for each update, `batches` times `load_data` and
    `score_by_id`, a forward pass, and a `train_step`. Needs `losses` and `examples` of a workload.

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
    paid_once = PAID_ONCE
    one_process = "each rank would have other irreducible losses"

    batches: int = 2
    epochs: float = 10.0
    il_charge: str = "full"

    def __post_init__(self) -> None:
        charged_share(self.il_charge)
        check_positive(epochs=self.epochs)
        if self.batches < 2:
            raise ValueError(f"batches must be a whole number from 2: {self.batches}")

    @property
    def charged_shares(self) -> Mapping[str, float]:
        """Return the share of the second model's cost that a run is charged."""
        return dict.fromkeys(PAID_ONCE, charged_share(self.il_charge))

    def step_kinds(self, workload: Workload) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return the steps of the second model, its scorings, and those that train."""
        select = {"load_data": self.batches, "score_by_id": self.batches, "train_step": 1}
        return {"irreducible_step": 1}, {"irreducible_score": 1}, select

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> RhoLoss:
        """Return the recipe, with the workload's optimizer for both models."""
        optimizer = workload.make_optimizer(model, learning_rate)
        irreducible = IrreducibleLosses(workload, learning_rate, self.epochs)
        return RhoLoss(model, optimizer, workload, self.batches, irreducible)
