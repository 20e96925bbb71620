"""Small trainings of digits under costs that are made up."""

from baselines.methods.method import METHODS
from baselines.methods.settings import Settings
from baselines.training.loop import train
from baselines.training.results import TrainingResult
from baselines.workloads import digits
from timing import Budget

WORKLOAD = digits.load()

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

SETTINGS = Settings(learning_rate=0.05, k=3, every=4)


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
        {method: METHODS[method] for method in methods},
        seed=seed,
        budget=Budget(budget),
        costs=costs,
        settings=SETTINGS,
        evaluations=evaluations,
        policy=policy,
    )
