"""The training loop: one trajectory, and the methods that follow it under their budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from timing import Account, Budget, Stopwatch
from timing.schedules import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from baselines.averagers import Averager
    from baselines.methods import Method, Settings
    from baselines.workloads.workload import Batch, Workload
    from timing import Policy


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: optimizer steps so far.
        rst_seconds: reference seconds charged so far.
        value: the workload's metric on the validation part; lower is better.
        train_loss: mean training loss since the point before.
        learning_rate: of the next step.
    """

    step: int
    rst_seconds: float
    value: float
    train_loss: float
    learning_rate: float


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        method: its name in the table of methods.
        seed: of initial weights and batches.
        points: the evaluations; the last is at the end of the budget.
        account: its lines, one an operation.
        totals: reference seconds that each policy would have charged for it.
        step_seconds: the most that one step of this method costs, in reference seconds.
        failure: why it ended before its budget; None if it did not.
    """

    method: str
    seed: int
    points: tuple[Point, ...]
    account: tuple[Mapping[str, Any], ...]
    totals: Mapping[Policy, float]
    step_seconds: float
    failure: str | None

    @property
    def steps(self) -> int:
        """Optimizer steps to the last evaluation."""
        return self.points[-1].step if self.points else 0

    @property
    def rst_seconds(self) -> float:
        """Reference seconds charged to the last evaluation."""
        return self.points[-1].rst_seconds if self.points else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """How often each operation ran."""
        return {line["operation"]: line["times"] for line in self.account}

    @property
    def final(self) -> float:
        """The metric at the end of the budget; infinite if the run failed."""
        return math.inf if self.failure else self.points[-1].value

    def value_at(self, rst_seconds: float) -> float:
        """The metric at the latest evaluation by then; infinite if there is none, or it failed."""
        values = [point.value for point in self.points if point.rst_seconds <= rst_seconds]
        return values[-1] if values and not self.failure else math.inf

    def rst_to(self, target: float) -> float:
        """Reference seconds charged until the metric first reached the target; infinite if never.

        Known to the grid of evaluations, which is the same for all methods.
        """
        return next((p.rst_seconds for p in self.points if p.value <= target), math.inf)


def training_step(
    workload: Workload, model: nn.Module, optimizer: Optimizer, batch: Batch
) -> Tensor:
    """One optimizer step, as trained and as calibrated; returns the loss, detached."""
    optimizer.zero_grad()
    loss = workload.loss(model, batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


STEP = {"load_data": 1, "train_step": 1}
EVALUATION = {"evaluate": 1}


def dearest_step(averager: Averager) -> dict[str, int]:
    """The most that a step with this averager can run."""
    return {**STEP, **averager.step_operations}


def dearest_reading(averager: Averager) -> dict[str, int]:
    """The most that an evaluation with this averager can run."""
    return {**EVALUATION, **averager.read_operations}


def check_budget(averager: Averager, account: Account, budget: Budget) -> None:
    """Refuse a budget that does not pay for one step and one evaluation.

    Raises:
        ValueError: it does not.
        KeyError: an operation has no cost.
    """
    least = account.cost({**dearest_step(averager), **dearest_reading(averager)})
    if budget.seconds < least:
        raise ValueError(
            f"a budget of {budget.seconds:g} s does not pay for one step and one evaluation "
            f"({least:.3g} s): give more"
        )


@dataclass(frozen=True)
class Trajectory:
    """Runs that followed one training together, and what it took here.

    Attributes:
        runs: one a method.
        rst_seconds: reference seconds of all that ran but evaluations, a shared step once.
        measured_seconds: wall time of the same, on this machine.
        other_cores: cores that other processes kept busy meanwhile.
    """

    runs: tuple[Run, ...]
    rst_seconds: float
    measured_seconds: float
    other_cores: float


class _Follower:
    """A method on its way along a trajectory, with an account of its own."""

    def __init__(self, name: str, averager: Averager, account: Account, budget: Budget) -> None:
        check_budget(averager, account, budget)
        self.name = name
        self.averager = averager
        self.account = account
        self.budget = budget
        self.step_seconds = account.cost(dearest_step(averager))
        # In the account's own units, whole femtoseconds, since these are compared at every step.
        self.step_cost = account.cost_femtoseconds(dearest_step(averager))
        self.reading_cost = account.cost_femtoseconds(dearest_reading(averager))
        self.points: list[Point] = []
        self.next_point = 1
        self.loss_sum = torch.zeros(())
        self.steps_since = 0

    def step(self, loss: Tensor) -> None:
        self.loss_sum = self.loss_sum + loss
        self.steps_since += 1
        self.account.charge("load_data")
        self.account.charge("train_step")
        added = self.averager.after_step(self.budget.spent(self.account))
        if added is not None:
            self.account.charge(added)

    @property
    def can_pay(self) -> bool:
        """Whether the budget has another step and the reading that ends the run."""
        return self._left >= self.step_cost + self.reading_cost

    @property
    def _left(self) -> int:
        return self.budget.femtoseconds - self.account.femtoseconds

    def is_due(self, evaluations: int) -> bool:
        """Whether a point of the grid was passed, and its reading can be paid."""
        passed = math.floor(self.budget.spent(self.account) * evaluations)
        if passed < self.next_point or self._left < self.step_cost + 2 * self.reading_cost:
            return False
        self.next_point = passed + 1
        return True

    def mean_loss(self) -> float:
        """Mean training loss since the latest point."""
        mean = float(self.loss_sum) / self.steps_since
        self.loss_sum, self.steps_since = torch.zeros(()), 0
        return mean

    @property
    def failure(self) -> str | None:
        """What is wrong with the latest point, if anything."""
        latest = self.points[-1]
        if math.isfinite(latest.value) and math.isfinite(latest.train_loss):
            return None
        return (
            f"the training loss or the metric is no finite number at step {latest.step} "
            f"(learning rate {latest.learning_rate:g}): lower the rate"
        )

    def run(self, seed: int) -> Run:
        """What came of it."""
        return Run(
            method=self.name,
            seed=seed,
            points=tuple(self.points),
            account=tuple(self.account.lines()),
            totals=self.account.totals(),
            step_seconds=self.step_seconds,
            failure=self.failure,
        )


def train(
    workload: Workload,
    methods: Mapping[str, Method],
    seed: int,
    budget: Budget,
    costs: Mapping[str, float],
    settings: Settings,
    evaluations: int,
    on_point: Callable[[str, Point], None] = lambda *_: None,
    policy: Policy = "algoperf",
) -> Trajectory:
    """Train until no method's budget can pay for another step and the reading that ends its run.

    Methods that only read a training, as an average of the constant rate does, can follow one
    together: each has its own account and ends where its own budget does, just as if it had trained
    alone. A step is charged with all that a method adds to it, and each reading of an average too,
    for it changes the weights or the statistics of the reported model; evaluation itself and the
    loading of data are counted, and charged by the policy `mlperf` alone. So the RST charged to a
    method is at most the budget, and falls short of it by less than one step. The learning rate
    follows the fraction of the budget spent before each step.

    Args:
        workload: model and data.
        methods: those that follow this trajectory, by name. Several must share the constant rate:
            any other depends on what each has spent.
        seed: of initial weights and batches; the same for all methods of a pair.
        budget: reference seconds of each method.
        costs: reference seconds of each operation.
        settings: peak rate, k and interval.
        evaluations: over the budget, evenly spaced, the last at its end.
        on_point: told of each method's evaluations.
        policy: which operations are charged.

    Returns:
        A run for each method. Where the loss or the metric is no finite number any more, it ends at
        once, with `failure` set.

    Raises:
        ValueError: the budget is smaller than one step, or the methods cannot share a trajectory.
        KeyError: an operation has no cost.
    """
    schedules = {method.schedule for method in methods.values()}
    if len(methods) > 1 and schedules != {constant}:
        raise ValueError(
            f"{', '.join(methods)} cannot follow one trajectory: their rates differ, or depend on "
            "what each has spent"
        )
    torch.manual_seed(seed)
    model = workload.make_model().train()
    optimizer = workload.make_optimizer(model, settings.learning_rate)
    followers = []
    for name, method in methods.items():
        averager = method.averager(model, optimizer, workload, settings)
        followers.append(_Follower(name, averager, Account(costs, policy), budget))
        optimizer = averager.optimizer
    (factor,) = schedules
    spent = followers[0].account
    schedule = LambdaLR(optimizer, lambda _: factor(budget.spent(spent)))
    batches = workload.batches(seed)
    watch = Stopwatch()
    step = 0

    def evaluate(follower: _Follower, operations: Mapping[str, int]) -> None:
        for operation, times in operations.items():
            follower.account.charge(operation, times)
        with follower.averager.reading()[0] as reported:
            watch.stop()
            value = workload.evaluate(reported)
            follower.account.charge("evaluate")
            rate = float(schedule.get_last_lr()[0])
            charged = follower.account.rst_seconds
            follower.points.append(Point(step, charged, value, follower.mean_loss(), rate))
            on_point(follower.name, follower.points[-1])
            watch.start()

    active = list(followers)
    with watch:
        while active:
            loss = training_step(workload, model, optimizer, next(batches))
            step += 1
            for follower in active:
                follower.step(loss)
            schedule.step()
            for follower in list(active):
                if not follower.can_pay:
                    # In full even if there is nothing to read, so that every run ends alike.
                    evaluate(follower, follower.averager.read_operations)
                    active.remove(follower)
                elif follower.is_due(evaluations):
                    evaluate(follower, follower.averager.reading()[1])
                    if follower.failure:
                        active.remove(follower)
    # The watch stood still for evaluations alone, so every other operation is part of both times.
    timed = Account(costs, "mlperf")
    for operation in STEP:
        timed.charge(operation, step)
    for follower in followers:
        for operation, times in follower.account.counts.items():
            if operation not in STEP and operation not in EVALUATION:
                timed.charge(operation, times)
    return Trajectory(
        runs=tuple(follower.run(seed) for follower in followers),
        rst_seconds=timed.rst_seconds,
        measured_seconds=watch.wall_seconds,
        other_cores=watch.other_cores,
    )
