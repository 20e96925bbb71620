"""Small trainings of digits under costs that are made up."""

import dataclasses

from torch import nn

from baselines.methods.method import Method
from baselines.methods.names import NAMES, RECIPES, find
from baselines.training.loop import train
from baselines.training.results import TrainingResult
from baselines.workloads import digits
from timing import Budget


def make_model() -> nn.Module:
    """Make a network with BatchNorm whose step takes half as long as that of digits."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


WORKLOAD = dataclasses.replace(digits.load(), make_model=make_model)

COSTS = {
    "load_data": 0.0003,
    "train_step": 0.01,
    "schedule_free_step": 0.01,
    "swap": 0.002,
    "collect": 0.0007,
    "average": 0.002,
    "ema_update": 0.0011,
    "swa_update": 0.0008,
    "statistics": 0.025,
    "evaluate": 0.5,
}

# Those that need no other costs, nor more of a workload; the others are in test_recipe_steps.
METHODS = tuple(name for name in NAMES if name not in RECIPES or name == "schedule-free")

RATE = 0.05
WINDOW = {"lawa.k": 3, "lawa.every": 4}


def method_of(name: str, **settings: object) -> Method:
    """The method with LAWA's window of these trainings, where it has one."""
    found = find(name)
    window = {key: value for key, value in WINDOW.items() if key in found.settings}
    return found.with_settings({**window, **settings})


def follow(
    *methods: str,
    budget: float = 0.5,
    costs=COSTS,
    workload=WORKLOAD,
    seed=0,
    evaluations=5,
    policy="algoperf",
) -> TrainingResult:
    return train(
        workload,
        [method_of(method) for method in methods],
        seed=seed,
        budget=Budget(budget),
        costs=costs,
        learning_rate=RATE,
        evaluations=evaluations,
        policy=policy,
    )
