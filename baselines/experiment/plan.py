"""Say what is to be compared: methods, seeds and a budget, and the trainings that it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from baselines.methods.averagers import AveragerPart
from baselines.methods.method import Method
from baselines.methods.names import DEFAULT, SHORT, find
from baselines.methods.recipes import RecipePart
from baselines.methods.schedules import SchedulePart
from baselines.training.method_run import check_budget, check_ends
from baselines.training.rounding import FLOAT, Rounding, parse, parse_readings
from baselines.workloads.base import Workload
from timing import Account, Budget, Policy, Profile

EVALUATIONS = 30
# What the peak rate is called beside the settings of parts.
RATE = "learning_rate"


@dataclass(frozen=True)
class Trial:
    """What came of one trial of a method.

    Attributes:
        method: its name.
        number: of the trial, from 0; the same number has the same peak rate for every method.
        learning_rate: the peak rate that was tried.
        settings: of the method's parts, that were tried.
        value: the metric on the validation part at the end of the budget; infinite if it failed.
        rst_seconds: charged to the method, as if it had trained alone.
        trained_rst_seconds: of the training that was really done, evaluations not counted, in
            equal parts for the methods that followed it; the sum over all trials is what tuning
            took.
    """

    method: str
    number: int
    learning_rate: float
    settings: dict[str, Any]
    value: float
    rst_seconds: float
    trained_rst_seconds: float

    @property
    def tried(self) -> dict[str, Any]:
        """Return all that was chosen for it: the peak rate, and the settings."""
        return {RATE: self.learning_rate, **self.settings}


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        workload: model and data.
        methods: what is compared, each with its own settings; no two of one name.
        seeds: of initial weights and batches, the same for every method.
        budget: reference seconds of each run.
        learning_rate: the peak rate of the methods that have none of their own.
        evaluations: over each budget.
        policy: which operations the budget is charged for.
        read_test: whether the test part is read at the end of each run.
        trials: settings to be tried for each method before; 0 for no tuning.
        tried: what came of them.
        free: operations that no budget is charged for, whatever the policy says, so that a method
            is judged by its idea without their cost.
        read: how the weights are read at each evaluation: float first, then rounded copies, by the
            names that `baselines.training.rounding.parse` takes, of the most bits first. They
            change nothing else, and are charged to no run.

    Raises:
        ValueError: two methods have one name; one of `free` is named twice, or is no operation of
            the methods; or one of `read` is named twice, or is none.
    """

    workload: Workload
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    budget: Budget
    learning_rate: float
    evaluations: int = EVALUATIONS
    policy: Policy = "algoperf"
    read_test: bool = True
    trials: int = 0
    tried: tuple[Trial, ...] = ()
    free: tuple[str, ...] = ()
    read: tuple[str, ...] = (FLOAT,)

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the method {twice} is named twice: give each once")
        # In one order, as it is one comparison.
        object.__setattr__(self, "free", tuple(sorted(self.free)))
        roundings = map(parse, parse_readings(",".join(self.read))[1:])
        ordered = sorted(roundings, key=lambda each: (-each.bits, each.name))
        object.__setattr__(self, "read", (FLOAT, *(each.name for each in ordered)))

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """Return how weights are rounded where they are not read in float."""
        return tuple(map(parse, self.read[1:]))

    @property
    def but_free(self) -> str:
        """Return what is free, to be put behind a title; empty where nothing is."""
        return f", {', '.join(self.free)} FREE" if self.free else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the methods."""
        return tuple(method.name for method in self.methods)

    @property
    def titles(self) -> dict[str, str]:
        """Return the title of each method, by its name.

        Of methods that differ in a setting alone, each says its own, also if it is the default.
        """
        return {method.name: method.title + self._told_apart(method) for method in self.methods}

    def _told_apart(self, method: Method) -> str:
        alike = [m for m in self.methods if _without_settings(m) == _without_settings(method)]
        said = [
            f"{short}={value}"
            for name, value in method.settings.items()
            if any(other.settings.get(name) != value for other in alike)
            and f"{(short := name.rpartition('.')[2])}=" not in method.name
        ]
        return f" ({', '.join(said)})" if said else ""

    def method(self, name: str) -> Method:
        """Return the method of this name."""
        return next(method for method in self.methods if method.name == name)

    @property
    def resolution_seconds(self) -> float:
        """Return the reference seconds between two evaluations: times to target are known to it."""
        return self.budget.seconds / self.evaluations

    def rate_of(self, method: Method) -> float:
        """Return the peak rate of a method: its own, or that of all by its recipe's factor."""
        if method.learning_rate is None:
            return self.learning_rate * method.recipe.rate_factor
        return method.learning_rate

    @property
    def tuning_rst_seconds(self) -> dict[str, float]:
        """Return the reference seconds of each method's trials, as if it had trained alone."""
        return {
            name: math.fsum(trial.rst_seconds for trial in self.tried if trial.method == name)
            for name in self.names
        }

    def budget_of(self, method: Method) -> Budget:
        """Return what a run of the method may spend: the budget, or its share of it."""
        return self.budget if method.share == 1 else Budget(self.budget.seconds * method.share)

    def evaluations_of(self, method: Method) -> int:
        """Return the evaluations over a run of the method, as dense as those of the others."""
        return max(1, round(self.evaluations * method.share))

    @cached_property
    def signature(self) -> dict[str, str | int | float]:
        """Return what the costs of this plan's operations depend on, for the profile."""
        return {
            "workload": self.workload.name,
            **self.workload.signature,
            **costs_depend_on(self.methods),
        }


def _without_settings(method: Method) -> str:
    name = re.sub(r"\([^()]*\)", "", method.name)
    return SHORT.get(name, name)


def costs_depend_on(methods: Iterable[Method]) -> dict[str, int]:
    """Return the settings that costs depend on: the largest of each among the methods.

    Those that none of them has are of the default methods, which every profile serves too.
    """
    asked = _largest([method.averager for method in methods])
    return {**_largest([find(name).averager for name in DEFAULT]), **asked}


def _largest(parts: Iterable[AveragerPart]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for name in part.costs_depend_on:
            found[name] = max(found.get(name, 0), getattr(part, name))
    return found


def check(plan: Plan, profile: Profile) -> None:
    """Refuse a plan that this profile cannot charge, or whose budget is below one step.

    No model is made for it: parts say before there is one what they can charge.

    Raises:
        MethodError: the workload lacks what a method needs.
        ProfileError: the profile is of another workload, or lacks an operation.
        ValueError: the budget does not pay for a step of some method.
    """
    check_free(plan)
    used = _largest([method.averager for method in plan.methods])
    # What none of its methods has may be as it is in the profile.
    unused = {name: profile.workload.get(name, k) for name, k in costs_depend_on(()).items()}
    signature = {**plan.signature, **unused, **used}
    for method in plan.methods:
        reading = method.max_evaluation_operations(plan.workload)
        method.check(plan.workload)
        profile.require(signature, {*method.step_operations(plan.workload), *reading})
        account = Account(profile.seconds, plan.policy, method.charged_shares(plan.free))
        check_budget(method, plan.workload, account, plan.budget_of(method))


def check_free(plan: Plan) -> None:
    """Refuse what is to be free and cannot be, whatever operations cost.

    Raises:
        ValueError: it is no operation of the plan's methods, or named twice; or it leaves a method
            nothing to be charged for, so that its training would not end.
    """
    if not plan.free:
        return
    known = {"load_data"}
    for method in plan.methods:
        known |= method.step_operations(plan.workload)
        known |= method.max_evaluation_operations(plan.workload).keys()
    if unknown := [name for name in plan.free if name not in known]:
        raise ValueError(
            f"{unknown[0]!r:.60} cannot be free: it is no operation of the methods compared, which "
            f"have {', '.join(sorted(known))}"
        )
    if len(set(plan.free)) < len(plan.free):
        raise ValueError(f"an operation is named twice: {', '.join(plan.free)}")
    for method in plan.methods:
        costs = dict.fromkeys(known, 1.0)
        check_ends(
            method, plan.workload, Account(costs, plan.policy, method.charged_shares(plan.free))
        )


@dataclass(frozen=True)
class Task:
    """One training of a plan: what may be run apart from all others.

    Attributes:
        methods: the names of those that follow it.
        seed: of initial weights and batches.
    """

    methods: tuple[str, ...]
    seed: int


def tasks(plan: Plan) -> list[Task]:
    """Return all trainings of a plan, seed by seed."""
    return [Task(methods, seed) for seed in plan.seeds for methods in methods_by_training(plan)]


def methods_by_training(plan: Plan) -> list[tuple[str, ...]]:
    """Group the names of methods that can share one training: of one recipe, schedule and rate."""
    together: dict[tuple[RecipePart, SchedulePart, float], list[str]] = {}
    alone: list[tuple[str, ...]] = []
    for method in plan.methods:
        if method.shares_training:
            key = method.recipe, method.schedule, plan.rate_of(method)
            together.setdefault(key, []).append(method.name)
        else:
            alone.append((method.name,))
    return [*map(tuple, together.values()), *alone]
