"""A method of your own in the comparison: this file, given as one of the names in --methods.

python -m baselines compare --workload digits --methods constant,lawa,examples/own_method.py

Lookahead (Zhang et al., arXiv 1907.08610): after every few steps, the weights go back half of the
way to where they were the last time.
"""

from collections.abc import Mapping

import torch

from baselines import Method, NoAveraging
from baselines.methods.averagers import check_keys
from timing import Operation
from timing.rst.schedules import linear

EVERY = 6


class Lookahead(NoAveraging):
    # The most that following one step adds. What is named here is charged to the budget, at the
    # cost that `operations` lets the calibration measure.
    step_operations: Mapping[str, int] = {"lookahead": 1}

    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        self.slow = [parameter.detach().clone() for parameter in model.parameters()]
        self.steps = 0

    def after_step(self, _spent):
        self.steps += 1
        if self.steps % EVERY:
            return None
        self.look_back()
        return "lookahead"

    @torch.no_grad()
    def look_back(self):
        fast = list(self.model.parameters())
        torch._foreach_lerp_(self.slow, fast, 0.5)
        torch._foreach_copy_(fast, self.slow)

    def operations(self):
        return {"lookahead": Operation(self.look_back, every=EVERY)}

    # What a comparison that was cut off goes on from.
    def state_dict(self):
        return {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state):
        check_keys(state, self.state_dict())
        for own, saved in zip(self.slow, state["slow"], strict=True):
            own.copy_(saved)
        self.steps = state["steps"]


def method() -> Method:
    return Method("Lookahead", linear, lambda model, optimizer, *_: Lookahead(model, optimizer))
