"""A comparison: all methods with all seeds, each under the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from baselines.averagers import Ema, Lawa, Swa
from baselines.methods import METHODS, Settings
from baselines.training import Point, Run, Trajectory, prices, train, training_step
from timing import Budget, Operation, Profile, calibrate, this_machine
from timing.profile import LARGEST_CLOSURE
from timing.schedules import constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from baselines.workloads.workload import Workload

EVALUATIONS = 30

# Calibrating takes a twentieth of the time that training will, within these seconds.
CALIBRATION_SHARE = 1 / 20
CALIBRATION_SECONDS = (1.0, 8.0)


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
    """

    workload: Workload
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    settings: Settings
    evaluations: int = EVALUATIONS

    @property
    def resolution_seconds(self) -> float:
        """Reference seconds between two evaluations: what a time to target is known to."""
        return self.budget.seconds / self.evaluations

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


def measure_profile(plan: Plan, on_progress: Callable[[float], None]) -> Profile:
    """Calibrate, on this machine, every operation the plan can charge.

    The caller decides what to do of a closure above `timing.profile.LARGEST_CLOSURE`.
    """
    training_seconds = plan.budget.seconds * len(trajectories_of(plan.methods)) * len(plan.seeds)
    least, most = CALIBRATION_SECONDS
    calibration = calibrate(
        operations(plan.workload, plan.settings),
        min(max(least, CALIBRATION_SHARE * training_seconds), most),
        LARGEST_CLOSURE,
        on_progress,
    )
    return Profile(
        machine=this_machine(),
        workload=plan.signature,
        costs=calibration.costs,
        closure=calibration.closure,
        other_cores=calibration.other_cores,
    )


def operations(workload: Workload, settings: Settings) -> dict[str, Operation]:
    """Every operation of this workload, on a model of its own, as the training loop runs it."""
    torch.manual_seed(0)
    model = workload.make_model().train()
    base = workload.make_optimizer(model, settings.learning_rate)
    lawa = Lawa(model, base, settings.k, every="manual")
    ema = Ema(model, base)
    swa = Swa(model, base, workload.statistics_batches)
    schedule = LambdaLR(lawa.optimizer, constant)
    batches = workload.batches(0)

    def train_step() -> None:
        training_step(workload, model, lawa.optimizer, next(batches))
        schedule.step()

    def average() -> None:
        with lawa.reading()[0]:
            pass

    def statistics() -> None:
        with swa.reading()[0]:
            pass

    found = {
        "train_step": Operation(train_step),
        "ema_update": Operation(lambda: ema.after_step(0.0)),
        "collect": Operation(lawa.optimizer.collect, every=5),
        "swa_update": Operation(lambda: swa.average.update_parameters(model), every=10),
        "average": Operation(average, every=20),
        "evaluate": Operation(lambda: workload.evaluate(model), every=40),
    }
    if "statistics" in swa.read_operations:
        found["statistics"] = Operation(statistics, every=20)
    return found


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
        needed = {"train_step", "evaluate", *averager.step_operations, *averager.read_operations}
        profile.require(plan.signature, needed)
        prices(averager, profile.seconds, plan.budget)


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
                plan.budget,
                profile.seconds,
                plan.settings,
                plan.evaluations,
                lambda name, point, seed=seed: listener.point(name, seed, point),  # type: ignore[misc]
            )
            listener.trajectory_ended(trajectory)
            trajectories.append(trajectory)
    return Comparison(plan, profile, tuple(trajectories))


def trajectories_of(methods: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The methods, those together that can follow one training."""
    together = tuple(name for name in methods if METHODS[name].schedule is constant)
    alone: list[tuple[str, ...]] = [(name,) for name in methods if name not in together]
    return [together, *alone] if together else alone
