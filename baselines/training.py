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
        step_seconds: the most that one step of this method costs, in reference seconds.
        failure: why it ended before its budget; None if it did not.
    """

    method: str
    seed: int
    points: tuple[Point, ...]
    account: tuple[Mapping[str, Any], ...]
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
    def final(self) -> float:
        """The metric at the end of the budget; infinite if the run failed."""
        return math.inf if self.failure else self.points[-1].value

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


def prices(averager: Averager, costs: Mapping[str, float], budget: Budget) -> tuple[float, float]:
    """Reference seconds of the dearest step with this averager, and of its dearest reading.

    Raises:
        ValueError: the budget does not pay for one of each.
        KeyError: an operation has no cost.
    """
    account = Account(costs)
    step_seconds = account.cost({"train_step": 1, **averager.step_operations})
    reading_seconds = account.cost(averager.read_operations)
    if budget.seconds < step_seconds + reading_seconds:
        raise ValueError(
            f"a budget of {budget.seconds:g} s does not pay for one step and one reading "
            f"({step_seconds + reading_seconds:.3g} s): give more"
        )
    return step_seconds, reading_seconds


@dataclass(frozen=True)
class Trajectory:
    """Runs that followed one training together, and what it took here.

    Attributes:
        runs: one a method.
        rst_seconds: reference seconds of everything charged in it, a shared step once.
        measured_seconds: wall time of the same, on this machine.
        other_cores: cores that other processes kept busy meanwhile.
    """

    runs: tuple[Run, ...]
    rst_seconds: float
    measured_seconds: float
    other_cores: float


class _Follower:
    """A method on its way along a trajectory, with an account of its own."""

    def __init__(
        self, name: str, averager: Averager, costs: Mapping[str, float], budget: Budget
    ) -> None:
        self.name = name
        self.averager = averager
        self.account = Account(costs)
        self.budget = budget
        self.step_seconds, self.reading_seconds = prices(averager, costs, budget)
        self.points: list[Point] = []
        self.next_point = 1
        self.loss_sum = torch.zeros(())
        self.steps_since = 0

    def step(self, loss: Tensor) -> None:
        self.loss_sum = self.loss_sum + loss
        self.steps_since += 1
        self.account.charge("train_step")
        added = self.averager.after_step(self.budget.spent(self.account))
        if added is not None:
            self.account.charge(added)

    @property
    def can_pay(self) -> bool:
        """Whether the budget has another step and the reading that ends the run."""
        return self.budget.left(self.account) >= self.step_seconds + self.reading_seconds

    def is_due(self, evaluations: int) -> bool:
        """Whether a point of the grid was passed, and its reading can be paid."""
        passed = math.floor(self.budget.spent(self.account) * evaluations)
        left = self.budget.left(self.account)
        if passed < self.next_point or left < self.step_seconds + 2 * self.reading_seconds:
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
) -> Trajectory:
    """Train until no method's budget can pay for another step and the reading that ends its run.

    Methods that only read a training, as an average of the constant rate does, can follow one
    together: each has its own account and ends where its own budget does, just as if it had trained
    alone. A step is charged with all that a method adds to it, and each reading of an average too,
    for it changes the weights or the statistics of the reported model; evaluation itself is counted
    and not charged (as by No Train No Gain and AlgoPerf). So the RST charged to a method is at most
    the budget, and falls short of it by less than one step. The learning rate follows the fraction
    of the budget spent before each step.

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
        followers.append(_Follower(name, averager, costs, budget))
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
    everything = Account(costs)
    everything.charge("train_step", step)
    for follower in followers:
        for operation, times in follower.account.counts.items():
            if operation != "train_step":
                everything.charge(operation, times)
    return Trajectory(
        runs=tuple(follower.run(seed) for follower in followers),
        rst_seconds=everything.rst_seconds,
        measured_seconds=watch.wall_seconds,
        other_cores=watch.other_cores,
    )
