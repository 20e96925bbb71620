"""A loop of your own under a budget of reference time: `python examples/own_budget.py`.

The learning rate follows the fraction of the budget that is spent, so both end together.
Without --reference the costs are of this machine, measured in a second. For results to compare with
those of others, measure a profile once, on one machine, and give it to all:

python -m timing calibrate examples/own_budget.py:target --out reference.json

What the loop took here is recorded by a StepTimer, and is mapped to the machine of a profile:

python -m timing map run.json --reference reference.json
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from timing import (
    Account,
    Budget,
    CalibrationTarget,
    MeasuredRun,
    Operation,
    Profile,
    StepTimer,
    calibrate,
)
from timing.rst.schedules import cosine, warm_up

BATCH = 64
WORKLOAD: dict[str, str | int | float] = {
    "model": "mlp-64-256-10",
    "optimizer": "sgd",
    "batch": BATCH,
    "dtype": "float32",
}


class Loop:
    """A training, and its evaluation."""

    def __init__(self):
        torch.manual_seed(0)
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)

    def train_step(self):
        batch = torch.randint(1200, (BATCH,))
        self.opt.zero_grad()
        F.cross_entropy(self.model(self.x[batch]), self.y[batch]).backward()
        self.opt.step()

    def evaluate(self):
        with torch.no_grad():
            return (self.model(self.x[1200:]).argmax(1) != self.y[1200:]).float().mean().item()


def target():
    loop = Loop()
    operations = {
        "train_step": Operation(loop.train_step),
        "evaluate": Operation(loop.evaluate, every=40),
    }
    return CalibrationTarget(WORKLOAD, operations)


def main(budget_seconds=0.5, reference=None, record="run.json"):
    if reference:
        profile = Profile.read(reference)
        profile.require(WORKLOAD, {"train_step", "evaluate"})
        costs, joules = profile.seconds, profile.joules
    else:
        costs, joules = calibrate(target().operations, 1.0, math.inf).seconds, {}
    loop, account, budget = Loop(), Account(costs, joules=joules), Budget(budget_seconds)
    rate = warm_up(cosine, 0.05)
    schedule = LambdaLR(loop.opt, lambda _: rate(budget.spent(account)))
    step_cost = account.cost_femtoseconds({"train_step": 1})

    timer = StepTimer()
    while budget.affords(account, step_cost):
        with timer("train_step"):
            loop.train_step()
        account.charge("train_step")
        schedule.step()
    with timer("evaluate"):
        error = loop.evaluate()
    account.charge("evaluate")
    MeasuredRun.of(timer, WORKLOAD).write(record)

    steps, rst = account.counts["train_step"], account.rst_seconds
    print(f"{steps} steps, {rst:.4f} s of {budget_seconds:g} s RST; error {error:.2%}")
    if account.rse_joules is not None:
        print(f"{account.rse_joules:.4g} J of reference system energy")
    here = timer.phases()["train_step"].median_seconds
    print("seconds of a step by the reference, and here:", costs["train_step"], here)
    print(f"{record} has what it took here: python -m timing map {record} --reference PROFILE")
    return account, error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-seconds", type=float, default=0.5)
    parser.add_argument("--reference", help="a profile that timing calibrate has written")
    parser.add_argument("--record", default="run.json", help="the file of what it took here")
    options = parser.parse_args()
    main(options.budget_seconds, options.reference, options.record)
