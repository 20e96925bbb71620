"""Sophia-G: a recipe that divides the momentum by an estimate of the Hessian, and clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from baselines.methods.part import Range, check_positive, check_share
from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step
from baselines.methods.recipes.groups import groups_of
from baselines.methods.recipes.sophia_optimizer import SophiaOptimizer
from baselines.workloads.base import Batch, Workload
from timing import Operation


class Sophia(Recipe):
    """Estimates the Hessian's diagonal before every `every`-th step, the first one too."""

    def __init__(
        self, model: nn.Module, optimizer: SophiaOptimizer, workload: Workload, every: int
    ) -> None:
        super().__init__(model, optimizer, workload)
        # `optimizer` may become one around it.
        self.sophia = optimizer
        self.every = every
        self.updates = 0

    def step(self, batches: Iterator[Batch], spent: float) -> Step:  # noqa: ARG002
        """Run a step, and before it an estimate on the same batch if one is due."""
        batch = next(batches)
        is_due = self.updates % self.every == 0
        if is_due:
            self.estimate(batch)
        self.updates += 1
        loss = training_step(self.workload, self.network, self.optimizer, batch)
        return Step(("load_data", *["hessian"] * is_due, "sophia_step"), loss)

    def estimate(self, batch: Batch) -> None:
        """Take terms · g² into h, g the gradient of the mean loss of labels that the model draws.

        Its expectation is the Gauss-Newton matrix's diagonal (Gauss-Newton-Bartlett, section 2.3).
        """
        assert self.workload.logits is not None
        self.sophia.zero_grad()
        logits = self.workload.logits(self.network, batch)
        # By the Gumbel trick: torch.multinomial raises where a training has diverged.
        waits = torch.empty_like(logits, dtype=torch.float32).exponential_()
        drawn = (logits.detach() - waits.log()).argmax(1)
        F.cross_entropy(logits, drawn).backward()
        self.sophia.add_estimate(len(logits))

    def operations(self, batch: Callable[[], Batch]) -> Mapping[str, Operation]:
        """Return an estimate and a training step."""
        return {
            "hessian": Operation(lambda: self.estimate(batch()), every=self.every),
            "sophia_step": super().operations(batch)["train_step"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return when the next estimate is due."""
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.updates = state["updates"]


@dataclass(frozen=True)
class SophiaPart(RecipePart):
    """Sophia-G (Liu et al., arXiv 2305.14342, Algorithm 3).

        m = beta1 m + (1 - beta1) g;  every `every` updates h = beta2 h + (1 - beta2) terms ĝ²
        w = w - lr (decay w + sign(m) min(|m| / (rho h + eps), 1))

    Charges `load_data` and `sophia_step` for each update, and `hessian`, a forward and a backward
    pass, for each estimate. Needs `logits` of a workload, whose loss is their mean cross-entropy.
    Its authors take about the rates of AdamW; those of SGD say little of it: tune. It is ours:
    pytorch-optimizer has Sophia-H alone, which estimates by second derivatives.

    Attributes:
        rate: of the comparison's peak rate; the decay of a group is divided by it.
        beta1: of the momentum.
        beta2: of the estimates.
        rho: the larger, the fewer coordinates are clipped.
        every: updates from one estimate to the next.
    """

    name = "sophia"
    title = "Sophia-G"
    space = {"rho": Range(0.01, 0.05, log=True)}
    step_operations = {"load_data": 1, "hessian": 1, "sophia_step": 1}
    needs = ("logits",)

    rate: float = 1.0
    beta1: float = 0.965
    beta2: float = 0.99
    rho: float = 0.04
    every: int = 10

    def __post_init__(self) -> None:
        check_share(beta1=self.beta1, beta2=self.beta2)
        check_positive(rate=self.rate, rho=self.rho, every=self.every)

    @property
    def rate_factor(self) -> float:
        """Return the setting `rate`."""
        return self.rate

    def begin(self, model: nn.Module, workload: Workload, learning_rate: float) -> Sophia:
        """Return the recipe, with Sophia in the place of the workload's optimizer."""
        groups = groups_of(workload, model, learning_rate, self.rate)
        optimizer = SophiaOptimizer(groups, (self.beta1, self.beta2), self.rho)
        return Sophia(model, optimizer, workload, self.every)
