"""A comparison: all methods with all seeds, each under the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from baselines.methods import METHODS, Settings
from baselines.training import (
    Point,
    Run,
    Trajectory,
    check_budget,
    dearest_reading,
    dearest_step,
    train,
)
from timing import Account, Budget, Policy, Profile
from timing.schedules import constant

if TYPE_CHECKING:
    from baselines.workloads.workload import Workload

EVALUATIONS = 30


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        workload: model and data.
        methods: names in the table of methods.
        seeds: of initial weights and batches, the same for every method.
        budget: reference seconds of each run.
        settings: peak rate, k and interval of all methods.
        evaluations: over each budget.
        policy: which operations the budget is charged for.
    """

    workload: Workload
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    settings: Settings
    evaluations: int = EVALUATIONS
    policy: Policy = "algoperf"

    @property
    def resolution_seconds(self) -> float:
        """Reference seconds between two evaluations: what a time to target is known to."""
        return self.budget.seconds / self.evaluations

    def budget_of(self, method: str) -> Budget:
        """What a run of the method may spend: the budget, or its share of it."""
        share = METHODS[method].share
        return self.budget if share == 1 else Budget(self.budget.seconds * share)

    def evaluations_of(self, method: str) -> int:
        """Evaluations over a run of the method, as dense as those of the others."""
        return max(1, round(self.evaluations * METHODS[method].share))

    @property
    def signature(self) -> dict[str, str | int | float]:
        """What the costs of this plan's operations depend on, for the profile."""
        return {"workload": self.workload.name, **self.workload.signature, "k": self.settings.k}


@dataclass(frozen=True)
class Comparison:
    """A plan carried out under a reference profile."""

    plan: Plan
    profile: Profile
    trajectories: tuple[Trajectory, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, seed by seed."""
        return tuple(run for trajectory in self.trajectories for run in trajectory.runs)

    def of(self, method: str) -> list[Run]:
        """The runs of a method, by seed."""
        return [run for run in self.runs if run.method == method]


class Listener(Protocol):
    """Told of a comparison's progress."""

    def run_started(self, method: str, seed: int) -> None:
        """A run begins."""

    def point(self, method: str, seed: int, point: Point) -> None:
        """An evaluation of a run that has begun."""

    def trajectory_ended(self, trajectory: Trajectory) -> None:
        """Runs have ended, all those that followed one training."""


def check(plan: Plan, profile: Profile) -> None:
    """Refuse a plan that this profile cannot charge, or whose budget is below one step.

    Raises:
        ProfileError: the profile is of another workload, or lacks an operation.
        ValueError: the budget does not pay for a step of some method.
    """
    for name in plan.methods:
        model = plan.workload.make_model()
        base = plan.workload.make_optimizer(model, plan.settings.learning_rate)
        averager = METHODS[name].averager(model, base, plan.workload, plan.settings)
        needed = {*dearest_step(averager), *dearest_reading(averager)}
        profile.require(plan.signature, needed)
        check_budget(averager, Account(profile.seconds, plan.policy), plan.budget_of(name))


def compare(plan: Plan, profile: Profile, listener: Listener) -> Comparison:
    """Train every method with every seed.

    Raises:
        ValueError: as `check` does, before anything is run.
    """
    check(plan, profile)
    trajectories = []
    for seed in plan.seeds:
        for names in trajectories_of(plan.methods):
            for name in names:
                listener.run_started(name, seed)
            trajectory = train(
                plan.workload,
                {name: METHODS[name] for name in names},
                seed,
                plan.budget_of(names[0]),
                profile.seconds,
                plan.settings,
                plan.evaluations_of(names[0]),
                lambda name, point, seed=seed: listener.point(name, seed, point),  # type: ignore[misc]
                plan.policy,
            )
            listener.trajectory_ended(trajectory)
            trajectories.append(trajectory)
    return Comparison(plan, profile, tuple(trajectories))


def trajectories_of(methods: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The methods, those together that can follow one training."""
    together = tuple(
        name for name in methods if METHODS[name].schedule is constant and METHODS[name].share == 1
    )
    alone: list[tuple[str, ...]] = [(name,) for name in methods if name not in together]
    return [together, *alone] if together else alone
