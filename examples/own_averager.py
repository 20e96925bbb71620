"""An averager of your own in the comparison: this file, given as a part in --methods.

python -m baselines compare --workload digits --methods lawa,decayed,examples/own_averager.py

The mean of the weights of all steps, in which later ones weigh more (polynomial-decay averaging,
Shamir and Zhang, arXiv 1212.1824; eta 0 is the plain mean). Give `--set polynomial.eta=8` to forget
the first ones sooner.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from baselines import Averager, AveragerPart, Operation, Range
from baselines.methods.averagers import check_keys


class PolynomialMean(Averager):
    def __init__(self, model, optimizer, eta):
        super().__init__(model, optimizer)
        self.eta = eta
        self.average = copy.deepcopy(model)
        self.steps = 0

    # After each update of the weights; `spent` is the fraction of the budget.
    def after_step(self, spent):
        self.steps += 1
        self.take_in()
        # What it ran: the loop charges it to the budget.
        return "polynomial_update"

    @torch.no_grad()
    def take_in(self):
        share = (self.eta + 1) / (max(self.steps, 1) + self.eta)
        tensors = zip(
            self.average.state_dict().values(), self.model.state_dict().values(), strict=True
        )
        for mean, live in tensors:
            if mean.is_floating_point():
                mean.lerp_(live, share)
            else:
                mean.copy_(live)

    # The model to evaluate, and what it costs to have it: nothing here.
    def evaluation_model(self):
        return nullcontext(self.average), {}

    # How calibration measures what an update costs.
    def operations(self):
        return {"polynomial_update": Operation(self.take_in)}

    # What a comparison that was cut off goes on from.
    def state_dict(self):
        return {"average": self.average.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        check_keys(state, self.state_dict())
        self.average.load_state_dict(state["average"])
        self.steps = state["steps"]


@dataclass(frozen=True)
class PolynomialPart(AveragerPart):
    name = "polynomial"
    title = "polynomial mean"
    # The most that following one step can run. What is not named here is refused.
    step_operations = {"polynomial_update": 1}
    # What `--trials` may try of the setting below.
    space = {"eta": Range(0, 16)}

    eta: float = 3.0

    def __post_init__(self):
        if self.eta < 0:
            raise ValueError(f"eta must be 0 or more: {self.eta}")

    def begin(self, model, optimizer, workload):
        return PolynomialMean(model, optimizer, self.eta)


part = PolynomialPart()
