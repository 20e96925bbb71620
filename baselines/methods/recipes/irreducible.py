"""Irreducible losses: those of a second model, trained on examples that the first never sees."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.methods.recipes.base import training_step
from baselines.methods.recipes.scoring import score
from baselines.workloads.base import Workload, generator
from timing import Operation

# One in so many examples trains the second model, and nothing else.
HELD_OUT_EVERY = 5
PAID_ONCE = ("irreducible_step", "irreducible_score")


def charged_share(il_charge: str) -> float:
    """Return the share of their cost that a run is charged: 0 of "none", 1 / R of "shared:R".

    Raises:
        ValueError: it is neither these nor "full".
    """
    if not re.fullmatch(r"none|full|shared:[1-9]\d{0,8}", il_charge):
        raise ValueError(
            f"il_charge must be none, full, or shared:R for R runs, such as shared:10: "
            f"{il_charge!r:.60}"
        )
    _, _, runs = il_charge.partition(":")
    return 1 / int(runs) if runs else float(il_charge == "full")


class IrreducibleLosses:
    """Trains the second model, a step at a time, then takes the losses of all other examples.

    Attributes:
        examples: of the workload.
        size: of a batch.
        losses: (examples,); infinite for those not taken yet, and always for those held out.
        held_out: the ids of those that train the second model.
    """

    def __init__(self, workload: Workload, learning_rate: float, epochs: float) -> None:
        assert workload.examples is not None
        self.workload, self.examples = workload, workload.examples
        self.size = len(next(workload.batches(0))[0])
        order = torch.randperm(self.examples.count, generator=generator(0))
        held_out = -(-len(order) // HELD_OUT_EVERY)
        self.held_out, rest = order[:held_out], order[held_out:]
        self.to_score = rest.split(self.size)
        self.training_steps = math.ceil(epochs * held_out / self.size)
        self.done = 0
        self.losses = torch.full((self.examples.count,), math.inf)
        self.model = workload.make_model().train()
        self.optimizer = workload.make_optimizer(self.model, learning_rate)

    @property
    def are_there(self) -> bool:
        """Say whether all have been taken."""
        return self.done == self.training_steps + len(self.to_score)

    def prepare(self) -> tuple[str, Tensor]:
        """Run the next step towards them; returns its operation and its mean loss."""
        self.done += 1
        if self.done <= self.training_steps:
            return "irreducible_step", self.train()
        ids = self.to_score[self.done - self.training_steps - 1]
        self.losses[ids] = self.score(ids)
        return "irreducible_score", self.losses[ids].mean()

    def train(self) -> Tensor:
        """Train the second model on a batch drawn from those held out; returns the loss."""
        places = torch.randint(len(self.held_out), (self.size,))
        batch = self.examples.get(self.held_out[places])
        return training_step(self.workload, self.model, self.optimizer, batch)

    def score(self, ids: Tensor) -> Tensor:
        """Return the losses of examples under the second model: (n,)."""
        return score(self.workload, self.model, self.examples.get(ids))

    def worthwhile(self, losses: Tensor, ids: Tensor) -> Tensor:
        """Return the places of a batch's worth of the largest loss less irreducible loss.

        Args:
            losses: (n,).
            ids: of their examples, (n,). Those held out are never worthwhile.
        """
        irreducible = self.losses[ids]
        count = min(self.size, int((irreducible != math.inf).sum()))
        return (losses - irreducible).topk(count).indices

    def operations(self) -> Mapping[str, Operation]:
        """Return how calibration runs a step of the second model, and a scoring by it."""
        scoring = Operation(lambda: self.score(self.to_score[0]))
        return {"irreducible_step": Operation(self.train), "irreducible_score": scoring}

    def state_dict(self) -> dict[str, Any]:
        """Return the second model, the losses, and how far they are."""
        return {
            "done": self.done,
            "irreducible": self.losses,
            "other": self.model.state_dict(),
            "other_optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.done = state["done"]
        self.losses.copy_(state["irreducible"])
        self.model.load_state_dict(state["other"])
        self.optimizer.load_state_dict(state["other_optimizer"])
