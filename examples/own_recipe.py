"""A recipe of your own in the comparison: this file, given as a part in --methods.

python -m baselines compare --workload digits --methods decayed,decayed+examples/own_recipe.py

Lookahead (Zhang et al., arXiv 1907.08610): after every few steps, the weights go back half of the
way to where they were the last time. Set `--set lookahead.every=10` to do so more rarely.
"""

from dataclasses import dataclass

import torch

from baselines import Operation, Range, Recipe, RecipePart


class Lookahead(Recipe):
    def __init__(self, model, optimizer, workload, every, share):
        super().__init__(model, optimizer, workload)
        self.every, self.share = every, share
        self.slow = [parameter.detach().clone() for parameter in model.parameters()]
        self.steps = 0

    def step(self, batches, spent):
        step = super().step(batches, spent)
        self.steps += 1
        if self.steps % self.every:
            return step
        self.look_back()
        # What ran, in order: the loop charges it to the budget.
        return step._replace(operations=(*step.operations, "lookahead"))

    @torch.no_grad()
    def look_back(self):
        fast: list[torch.Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(self.slow, fast, self.share)
        torch._foreach_copy_(fast, self.slow)

    # How calibration measures what it costs.
    def operations(self, batch):
        return {
            **super().operations(batch),
            "lookahead": Operation(self.look_back, every=self.every),
        }

    # What a comparison that was cut off goes on from.
    def state_dict(self):
        return {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for own, saved in zip(self.slow, state["slow"], strict=True):
            own.copy_(saved)
        self.steps = state["steps"]


@dataclass(frozen=True)
class LookaheadPart(RecipePart):
    name = "lookahead"
    title = "Lookahead"
    # The most that one step can run. What is not named here is refused when it is charged.
    step_operations = {**RecipePart.step_operations, "lookahead": 1}
    # What `--trials` may try of the settings below.
    space = {"every": Range(2, 20, whole=True)}

    every: int = 6
    share: float = 0.5

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every must be a number of steps from 1: {self.every}")

    def begin(self, model, workload, learning_rate):
        optimizer = workload.make_optimizer(model, learning_rate)
        return Lookahead(model, optimizer, workload, self.every, self.share)


part = LookaheadPart()
