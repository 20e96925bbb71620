"""Follow one training by the account of one method."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from baselines.methods.averagers import Averager
from baselines.methods.method import Method
from baselines.methods.recipes import Step
from baselines.training import distributed
from baselines.training.results import Point, Run, read_points
from baselines.training.rounding import Rounded
from baselines.workloads.base import Workload
from timing import Account, Budget

_T = TypeVar("_T", int, float)


def check_budget(method: Method, workload: Workload, account: Account, budget: Budget) -> None:
    """Refuse a budget that does not pay for one step and one evaluation.

    Raises:
        ValueError: it does not, or as `check_ends`.
        KeyError: an operation has no cost.
    """
    check_ends(method, workload, account)
    least = _costliest(method.step_kinds(workload), account.cost) * distributed.world_size()
    least += account.cost(method.max_evaluation_operations(workload))
    if budget.seconds < least:
        raise ValueError(
            f"a budget of {budget.seconds:g} s does not pay for one step and one evaluation "
            f"({least:.3g} s): give more"
        )


def check_ends(method: Method, workload: Workload, account: Account) -> None:
    """Refuse a method of which no step that comes again is charged.

    Raises:
        ValueError: it is so.
        KeyError: an operation has no cost.
    """
    kinds = method.recipe.step_kinds(workload)
    recurring = [kind for kind in kinds if not kind.keys() <= {*method.recipe.paid_once}]
    if not any(account.cost_femtoseconds(kind) for kind in recurring):
        ran = dict.fromkeys(name for kind in recurring for name in kind)
        raise ValueError(
            f"every step of {method.name} is free ({', '.join(ran)}), and its training would not "
            "end: leave train_step, or what stands for it, charged"
        )


class UndeclaredError(ValueError):
    """A part has run what it does not declare.

    Attributes:
        part: "recipe" or "averager".
    """

    def __init__(self, said: str, part: str) -> None:
        super().__init__(said)
        self.part = part


class MethodRun:
    """Follows one training by the account of one method."""

    def __init__(
        self,
        method: Method,
        averager: Averager,
        workload: Workload,
        account: Account,
        budget: Budget,
    ) -> None:
        check_budget(method, workload, account, budget)
        self.method = method
        self.averager = averager
        self.account = account
        self.budget = budget
        # Asked once: at every step it would take longer than to charge for the step.
        self.world = distributed.world_size()
        kinds = method.step_kinds(workload)
        self.step_seconds = _costliest(kinds, account.cost) * self.world
        # In the account's own units, whole femtoseconds, since these are compared at every step.
        self.step_cost = _costliest(kinds, account.cost_femtoseconds) * self.world
        self.kinds = method.recipe.step_kinds(workload)
        self.reading = dict(method.averager.max_evaluation_operations(workload))
        self.evaluation_cost = account.cost_femtoseconds(method.max_evaluation_operations(workload))
        self.points: list[Point] = []
        self.test = math.inf
        self.read_test: dict[str, float] = {}
        self.rounded: dict[str, Rounded] = {}
        self.ended = False
        self.error: str | None = None
        self.next_point = 1
        self.loss_sum = torch.zeros(())
        self.steps_since = 0
        # Steps that were seen to run no more than is declared.
        self._declared: set[tuple[str, ...]] = set()

    @property
    def name(self) -> str:
        """Return the method's."""
        return self.method.name

    def step(self, step: Step) -> str | None:
        """Charge a step of the recipe, on all ranks, and let the averager follow it.

        Returns the operation that the averager took, if any.
        """
        self.loss_sum = self.loss_sum + step.loss
        self.steps_since += 1
        if step.operations not in self._declared:
            ran = Counter(step.operations)
            self._check_recipe(ran)
            if step.updated and not self.account.cost_femtoseconds(ran):
                raise ValueError(
                    f"a step of {self.name} that updates weights is free ({', '.join(ran)}), and "
                    "its training might not end: leave one of them charged"
                )
            self._declared.add(step.operations)
        for operation in step.operations:
            self.account.charge(operation)
        if step.began:
            self._begin_anew(step.began)
        if not step.updated:
            return None
        added = self.averager.after_step(self.budget.spent(self.account))
        if added is not None:
            if added not in self.method.averager.step_operations:
                self._check({added: self.world}, self.method.averager.step_operations, "averager")
            self.account.charge(added, self.world)
        return added

    def _begin_anew(self, names: Sequence[str]) -> None:
        if not self.method.recipe.grows:
            raise UndeclaredError(
                f"a step of {self.name} has made {names[0]} part of the model, and its recipe does "
                "not say so before: add `grows = True` to its part",
                "recipe",
            )
        self.averager.begin_anew(names)

    def _check_recipe(self, ran: Mapping[str, int]) -> None:
        """Refuse a step that is of none of the recipe's kinds."""
        most: dict[str, int] = {}
        for kind in self.kinds:
            most |= {name: max(times, most.get(name, 0)) for name, times in kind.items()}
        self._check(ran, most, "recipe")
        # Those of several ranks may have run steps of several kinds.
        if self.world == 1 and not any(Counter(ran) <= Counter(kind) for kind in self.kinds):
            raise UndeclaredError(
                f"a step of {self.name} ran {', '.join(ran)}, which none of its recipe's "
                "step_kinds has together: name each kind of step there",
                "recipe",
            )

    def _check(self, ran: Mapping[str, int], declared: Mapping[str, int], part: str) -> None:
        """Refuse operations that the budget was not asked for: it would be overdrawn."""
        for operation, times in ran.items():
            most = declared.get(operation, 0) * self.world
            if times > most:
                raise UndeclaredError(
                    f"a step of {self.name} ran {operation!r} {times} times, and its {part} "
                    f"declares {most} in step_operations ({', '.join(declared) or 'it is empty'}): "
                    "name the most that a step can run",
                    part,
                )

    @property
    def can_pay(self) -> bool:
        """Say whether the budget has another step and the evaluation that ends the run."""
        return self.budget.affords(self.account, self.step_cost + self.evaluation_cost)

    def is_due(self, evaluations: int) -> bool:
        """Say whether a point of the grid was passed, and its evaluation can be paid."""
        passed = math.floor(self.budget.spent(self.account) * evaluations)
        cost = self.step_cost + 2 * self.evaluation_cost
        if passed < self.next_point or not self.budget.affords(self.account, cost):
            return False
        self.next_point = passed + 1
        return True

    def mean_loss(self) -> float:
        """Return the mean training loss since the latest point."""
        mean = float(self.loss_sum) / self.steps_since
        self.loss_sum, self.steps_since = torch.zeros(()), 0
        return mean

    @property
    def failure(self) -> str | None:
        """Return what is wrong, if anything: an error, or with the latest point."""
        if self.error or not self.points:
            return self.error
        latest = self.points[-1]
        if math.isfinite(latest.value) and math.isfinite(latest.train_loss):
            return None
        return (
            f"the training loss or the metric is no finite number at step {latest.step} "
            f"(learning rate {latest.learning_rate:g}): lower the rate"
        )

    def result(self, seed: int) -> Run:
        """Return its result."""
        return Run(
            method=self.name,
            seed=seed,
            points=tuple(self.points),
            account=tuple(self.account.lines()),
            totals=self.account.totals(),
            step_seconds=self.step_seconds,
            failure=self.failure,
            test=self.test,
            share=self.method.share,
            read_test=self.read_test,
            rounded=self.rounded,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where it is, the averager's own state included."""
        return {
            "account": self.account.state_dict(),
            "averager": self.averager.state_dict(),
            "points": [dataclasses.asdict(point) for point in self.points],
            "test": self.test,
            "read_test": self.read_test,
            "rounded": {name: dataclasses.asdict(each) for name, each in self.rounded.items()},
            "ended": self.ended,
            "next_point": self.next_point,
            "loss_sum": self.loss_sum,
            "steps_since": self.steps_since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is no state of this method.
        """
        if isinstance(state, dict):
            # Those of earlier versions read float alone.
            state = {"read_test": {}, "rounded": {}, **state}
        refuse_other_state(state, self.state_dict(), self.name)
        self.account.load_state_dict(state["account"])
        self.averager.load_state_dict(state["averager"])
        self.points = read_points(state["points"])
        self.test = state["test"]
        self.read_test = state["read_test"]
        self.rounded = {name: Rounded(**each) for name, each in state["rounded"].items()}
        self.ended = state["ended"]
        self.next_point = state["next_point"]
        self.loss_sum = state["loss_sum"]
        self.steps_since = state["steps_since"]


def refuse_other_state(saved: object, own: Mapping[str, Any], of: str) -> None:
    """Refuse a saved state that lacks one of one's own entries, or has one of another kind.

    Raises:
        ValueError: it does.
    """
    if not isinstance(saved, dict) or saved.keys() != own.keys():
        entries = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(
            f"the saved state of {of} has {entries or 'nothing'} where {', '.join(own)} are "
            "expected"
        )
    for name, value in own.items():
        if not isinstance(saved[name], type(value)):
            raise ValueError(
                f"{name} in the saved state of {of} is a {type(saved[name]).__name__} and not a "
                f"{type(value).__name__}"
            )


def _costliest(kinds: Iterable[Mapping[str, int]], cost: Callable[[Mapping[str, int]], _T]) -> _T:
    return max(cost(kind) for kind in kinds)
