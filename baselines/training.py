"""The training loop: one run of one method with one seed, under a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from timing import Account, Budget, Stopwatch

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
        measured_seconds: wall time here of what was charged.
        other_cores: cores that other processes kept busy meanwhile.
        failure: why it ended before its budget; None if it did not.
    """

    method: str
    seed: int
    points: tuple[Point, ...]
    account: tuple[Mapping[str, Any], ...]
    step_seconds: float
    measured_seconds: float
    other_cores: float
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


def train(
    workload: Workload,
    name: str,
    method: Method,
    seed: int,
    budget: Budget,
    costs: Mapping[str, float],
    settings: Settings,
    evaluations: int,
    on_point: Callable[[Point], None] = lambda _: None,
) -> Run:
    """Train until the budget cannot pay for another step and the reading that ends the run.

    A step is charged with all that the method adds to it, and each reading of an average too, for
    it changes the weights or the statistics of the reported model; evaluation itself is counted and
    not charged (as by No Train No Gain and AlgoPerf). So the RST charged is at most the budget, and
    falls short of it by less than one step. The learning rate follows the fraction of the budget
    spent before each step.

    Args:
        workload: model and data.
        name: the method's name, for the record.
        method: schedule and averager.
        seed: of initial weights and batches; the same for all methods of a pair.
        budget: reference seconds.
        costs: reference seconds of each operation.
        settings: peak rate, k and interval.
        evaluations: over the budget, evenly spaced, the last at its end.
        on_point: told of each evaluation.

    Returns:
        The run. Where the loss or the metric is no finite number any more, it ends at once, with
        `failure` set.

    Raises:
        ValueError: the budget is smaller than one step.
        KeyError: an operation has no cost.
    """
    torch.manual_seed(seed)
    model = workload.make_model().train()
    base = workload.make_optimizer(model, settings.learning_rate)
    averager = method.averager(model, base, workload, settings)
    account = Account(costs)
    schedule = LambdaLR(averager.optimizer, lambda _: method.schedule(budget.spent(account)))
    step_seconds, reading_seconds = prices(averager, costs, budget)
    batches = workload.batches(seed)
    points: list[Point] = []
    losses: list[Tensor] = []
    step = 0
    watch = Stopwatch()

    def evaluate(operations: Mapping[str, int]) -> bool:
        """Add a point; says whether training can go on from it."""
        for operation, times in operations.items():
            account.charge(operation, times)
        with averager.reading()[0] as reported:
            watch.stop()
            value = workload.evaluate(reported)
            account.charge("evaluate")
            watch.start()
        loss = float(torch.stack(losses).mean())
        losses.clear()
        rate = float(schedule.get_last_lr()[0])
        points.append(Point(step, account.rst_seconds, value, loss, rate))
        on_point(points[-1])
        return math.isfinite(value) and math.isfinite(loss)

    finite = True
    next_point = 1
    with watch:
        while finite and budget.left(account) >= step_seconds + reading_seconds:
            losses.append(training_step(workload, model, averager.optimizer, next(batches)))
            step += 1
            account.charge("train_step")
            added = averager.after_step(budget.spent(account))
            if added is not None:
                account.charge(added)
            schedule.step()
            passed = math.floor(budget.spent(account) * evaluations)
            if passed >= next_point and budget.left(account) >= step_seconds + 2 * reading_seconds:
                finite = evaluate(averager.reading()[1])
                next_point = passed + 1
        if finite:
            # Charged in full even if there is nothing to read, so that every run ends alike.
            finite = evaluate(averager.read_operations)
    failure = None
    if not finite:
        failure = (
            f"the training loss or the metric is no finite number at step {step} "
            f"(learning rate {points[-1].learning_rate:g}): lower the rate"
        )
    return Run(
        method=name,
        seed=seed,
        points=tuple(points),
        account=tuple(account.lines()),
        step_seconds=step_seconds,
        measured_seconds=watch.wall_seconds,
        other_cores=watch.other_cores,
        failure=failure,
    )
