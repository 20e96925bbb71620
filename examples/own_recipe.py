"""A recipe of your own in the comparison: this file, given as a part in --methods.

python -m baselines compare --workload digits --methods decayed,decayed+examples/own_recipe.py

Lookahead (Zhang et al., arXiv 1907.08610): after every few steps, the weights go back half of the
way to where they were the last time. Set `--set lookahead.every=10` to do so more rarely.
"""

from dataclasses import dataclass

import torch

from baselines import Operation, Range, Recipe, RecipePart


class Lookahead(Recipe):
    def __init__(self, model, optimizer, workload, part):
        super().__init__(model, optimizer, workload)
        self.every, self.share, self.steps = part.every, part.share, 0
        self.slow = [parameter.detach().clone() for parameter in model.parameters()]

    def step(self, batches, spent):
        step = super().step(batches, spent)
        self.steps += 1
        if self.steps % self.every:
            return step
        self.look_back()
        return step._replace(operations=(*step.operations, "lookahead"))  # all that ran: charged

    @torch.no_grad()
    def look_back(self):
        for slow, fast in zip(self.slow, self.model.parameters(), strict=True):
            fast.copy_(slow.lerp_(fast, self.share))

    def operations(self, batch):  # how calibration measures what each costs
        own = Operation(self.look_back, every=self.every)
        return {**super().operations(batch), "lookahead": own}

    def state_dict(self):  # what a comparison that was cut off goes on from
        return {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state):
        torch._foreach_copy_(self.slow, state["slow"])
        self.steps = state["steps"]


@dataclass(frozen=True)
class LookaheadPart(RecipePart):
    name, title = "lookahead", "Lookahead"
    step_operations = {**RecipePart.step_operations, "lookahead": 1}  # the most in one step
    space = {"every": Range(2, 20, whole=True)}  # what --trials may try of these settings:
    every: int = 6
    share: float = 0.5

    def begin(self, model, workload, learning_rate):
        return Lookahead(model, workload.make_optimizer(model, learning_rate), workload, self)


part = LookaheadPart()
