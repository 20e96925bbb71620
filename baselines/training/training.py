"""Hold a training on its way: model, optimizer, and the account of each method that reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from baselines.methods.method import Method
from baselines.methods.settings import Settings
from baselines.training import distributed
from baselines.training.method_run import EVALUATION, MethodRun, refuse_other_state, step_of
from baselines.training.results import TrainingResult
from baselines.workloads.base import Workload
from timing import Account, Budget, Policy, Stopwatch


class Training:
    """Holds a training on its way, and the methods that follow it: saved and loaded whole."""

    def __init__(
        self,
        workload: Workload,
        methods: Mapping[str, Method],
        seed: int,
        budget: Budget,
        costs: Mapping[str, float],
        settings: Mapping[str, Settings],
        policy: Policy,
    ) -> None:
        torch.manual_seed(seed)
        self.workload = workload
        self.seed = seed
        self.costs = costs
        self.step = 0
        self.model = workload.make_model().train()
        (rate,) = {own.learning_rate for own in settings.values()}
        self.optimizer = workload.make_optimizer(self.model, rate)
        self.runs: list[MethodRun] = []
        for name, method in methods.items():
            averager = method.averager(self.model, self.optimizer, workload, settings[name])
            account = Account(costs, policy)
            self.runs.append(MethodRun(name, method.share, averager, account, budget))
            self.optimizer = averager.optimizer
        (factor,) = {method.schedule for method in methods.values()}
        spent = self.runs[0].account
        self.schedule = LambdaLR(self.optimizer, lambda _: factor(budget.spent(spent)))
        self.network = distributed.ddp(self.model)
        self.watch = Stopwatch(but_children=True)
        # Of the processes before this one, where the training was cut off and went on.
        self.seconds_before, self.other_core_seconds_before = 0.0, 0.0
        # What tells it from others, beside what each part sees for itself.
        self.of = {
            "workload": workload.name,
            "seed": seed,
            "budget_seconds": budget.seconds,
            "settings": {name: dataclasses.asdict(each) for name, each in settings.items()},
        }

    @property
    def active(self) -> list[MethodRun]:
        """Return those whose budget has not ended."""
        return [run for run in self.runs if not run.ended]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on."""
        return {
            "of": self.of,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "runs": {run.name: run.state_dict() for run in self.runs},
            "measured_seconds": self.measured_seconds,
            "other_core_seconds": self.other_core_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what raises may have been loaded in part.

        Raises:
            ValueError: it is of another training, reference profile, policy, model or method.
        """
        refuse_other_state(state, self.state_dict(), "training")
        if state["of"] != self.of:
            raise ValueError(f"it is of another training: of {state['of']}, and this of {self.of}")
        for run in self.runs:
            run.load_state_dict(state["runs"][run.name])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        self.seconds_before = state["measured_seconds"]
        self.other_core_seconds_before = state["other_core_seconds"]

    @property
    def measured_seconds(self) -> float:
        """Wall time of all but evaluations, in this process and those before it."""
        return self.seconds_before + self.watch.wall_seconds

    @property
    def other_core_seconds(self) -> float:
        """Processor time of other processes meanwhile."""
        here = self.watch.other_cores * self.watch.wall_seconds
        return self.other_core_seconds_before + here

    def result(self, error: str | None) -> TrainingResult:
        """Return its result."""
        # The watch stood still for evaluations alone, so all other operations are in both times.
        timed = Account(self.costs, "mlperf")
        for operation in step_of(self.runs[0].averager):
            timed.charge(operation, self.step * distributed.world_size())
        for run in self.runs:
            shared = {*step_of(run.averager), *EVALUATION}
            for operation, times in run.account.counts.items():
                if operation not in shared:
                    timed.charge(operation, times)
        seconds = self.measured_seconds
        return TrainingResult(
            runs=tuple(run.result(self.seed) for run in self.runs),
            rst_seconds=timed.rst_seconds,
            measured_seconds=seconds,
            other_cores=self.other_core_seconds / seconds if seconds else 0.0,
            error=error,
        )
