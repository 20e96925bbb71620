"""A comparison: all methods with all seeds, each under the same budget."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from baselines.methods.method import Method, built_in, find
from baselines.methods.settings import Settings
from baselines.training.checkpoint import Checkpoints
from baselines.training.events import (
    Evaluated,
    Event,
    EventLog,
    ModelExported,
    OnEvent,
    Started,
    ending_of,
    fold,
    ignore,
)
from baselines.training.exported_model import export_model
from baselines.training.loop import train
from baselines.training.method_run import (
    check_budget,
    max_evaluation_operations,
    max_step_operations,
)
from baselines.training.results import Run, TrainingResult
from baselines.workloads.base import Workload
from timing import Account, Budget, Policy, Profile
from timing.rst.schedules import constant

EVALUATIONS = 30
# So many of the runs that did not end are named in a line.
_NAMED = 6


@dataclass(frozen=True)
class Trial:
    """What came of one trial of a method.

    Attributes:
        method: its name.
        number: of the trial, from 0; the same number has the same peak rate for every method.
        settings: that were tried.
        value: the metric on the validation part at the end of the budget; infinite if it failed.
        rst_seconds: charged to the method, as if it had trained alone.
        trained_rst_seconds: of the training that was really done, evaluations not counted, in
            equal parts for the methods that followed it; the sum over all trials is what tuning
            took.
    """

    method: str
    number: int
    settings: Settings
    value: float
    rst_seconds: float
    trained_rst_seconds: float


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
        tuned: settings of single methods, in place of `settings`.
        read_test: whether the test part is read at the end of each run.
        trials: settings to be tried for each method before; 0 for no tuning.
        tried: what came of them.
    """

    workload: Workload
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    settings: Settings
    evaluations: int = EVALUATIONS
    policy: Policy = "algoperf"
    tuned: Mapping[str, Settings] = field(default_factory=dict)
    read_test: bool = True
    trials: int = 0
    tried: tuple[Trial, ...] = ()

    @property
    def resolution_seconds(self) -> float:
        """Return the reference seconds between two evaluations: times to target are known to it."""
        return self.budget.seconds / self.evaluations

    def settings_of(self, method: str) -> Settings:
        """Return the settings of a method: its own if it was tuned."""
        return self.tuned.get(method, self.settings)

    @property
    def tuning_rst_seconds(self) -> dict[str, float]:
        """Return the reference seconds of each method's trials, as if it had trained alone."""
        return {
            method: math.fsum(trial.rst_seconds for trial in self.tried if trial.method == method)
            for method in self.methods
        }

    def budget_of(self, method: Method) -> Budget:
        """Return what a run of the method may spend: the budget, or its share of it."""
        return self.budget if method.share == 1 else Budget(self.budget.seconds * method.share)

    def evaluations_of(self, method: Method) -> int:
        """Return the evaluations over a run of the method, as dense as those of the others."""
        return max(1, round(self.evaluations * method.share))

    @property
    def signature(self) -> dict[str, str | int | float]:
        """Return what the costs of this plan's operations depend on, for the profile."""
        return {"workload": self.workload.name, **self.workload.signature, "k": self.settings.k}


@dataclass(frozen=True)
class Comparison:
    """A plan that was run under a reference profile."""

    plan: Plan
    profile: Profile
    trainings: tuple[TrainingResult, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return all runs, seed by seed."""
        return tuple(run for result in self.trainings for run in result.runs)

    def of(self, method: str) -> list[Run]:
        """Return the runs of a method, by seed."""
        return [run for run in self.runs if run.method == method]

    @property
    def cut_off(self) -> list[Run]:
        """Return the runs whose training raised an error or was killed: nothing of them is kept."""
        return [run for each in self.trainings if each.error is not None for run in each.runs]

    @property
    def failure(self) -> str | None:
        """Say in a line why the command that asked for this has failed; None if it has not.

        A run that diverged is a result, and its method's row shows the miss. One that was cut off
        has none; and where every run failed, nothing is compared.
        """
        failed = [run for run in self.runs if run.failure]
        under = f"under {self.plan.budget.seconds:g} s"
        if len(failed) == len(self.runs):
            first = failed[0]
            return f"every run failed {under}: {first.method}, seed {first.seed}: {first.failure}"
        names = [f"{run.method}, seed {run.seed}" for run in self.cut_off]
        if not names:
            return None
        more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{len(names)} of {len(self.runs)} runs {under} did not end "
            f"({'; '.join(names[:_NAMED])}{more})"
        )


def check(plan: Plan, profile: Profile) -> dict[str, Method]:
    """Refuse a plan that this profile cannot charge, or whose budget is below one step.

    Returns:
        The methods by name. Each is found once, so that one whose file is changed while a
        comparison runs stays what it was.

    Raises:
        ProfileError: the profile is of another workload, or lacks an operation.
        ValueError: the budget does not pay for a step of some method.
    """
    methods = {name: find(name) for name in plan.methods}
    for name, method in methods.items():
        settings = plan.settings_of(name)
        model = plan.workload.make_model()
        base = plan.workload.make_optimizer(model, settings.learning_rate)
        averager = method.averager(model, base, plan.workload, settings)
        needed = {*max_step_operations(averager), *max_evaluation_operations(averager)}
        profile.require(plan.signature, needed)
        check_budget(averager, Account(profile.seconds, plan.policy), plan.budget_of(method))
    return methods


@dataclass(frozen=True)
class Task:
    """One training of a plan: what may be run apart from all others.

    Attributes:
        methods: that follow it.
        seed: of initial weights and batches.
    """

    methods: tuple[str, ...]
    seed: int


def tasks(plan: Plan) -> list[Task]:
    """Return all trainings of a plan, seed by seed."""
    return [Task(methods, seed) for seed in plan.seeds for methods in methods_by_training(plan)]


def run_training(
    plan: Plan,
    task: Task,
    methods: Mapping[str, Method],
    profile: Profile,
    on_event: OnEvent = ignore,
    *,
    folder: Path | None = None,
    checkpoints: Checkpoints | None = None,
    export_models: bool = False,
) -> TrainingResult:
    """Train once, or go on with a training that was cut off; its methods are by name.

    Args:
        plan: what is compared.
        task: the training of it.
        methods: by name.
        profile: of the reference machine.
        on_event: called with what is logged, from the beginning.
        folder: where its events are logged.
        checkpoints: where it is kept on its way, until it has ended.
        export_models: whether each method's model is written to the folder, of the first seed
            alone: that is large, and takes seconds.

    Raises:
        StorageError: an event or a checkpoint cannot be written.
        CheckpointError: there are checkpoints, and none can be read.
    """
    told: list[Event] = []
    first = methods[task.methods[0]]
    with EventLog(folder) if folder else nullcontext() as log:

        def tell(event: Event) -> None:
            if log:
                log.append(event)
            told.append(event)
            on_event(event)

        def export(name: str, model: nn.Module, inputs: Tensor) -> None:
            if folder and export_models and task.seed == plan.seeds[0]:
                place = f"model-{re.sub(r'[^A-Za-z0-9=-]+', '-', name)}"
                reason = export_model(model, folder / place, inputs)
                where = None if reason else place
                tell(ModelExported(seed=task.seed, method=name, folder=where, reason=reason))

        shares = {name: methods[name].share for name in task.methods}
        tell(Started(seed=task.seed, shares=shares))
        result = train(
            plan.workload,
            {name: methods[name] for name in task.methods},
            task.seed,
            plan.budget_of(first),
            profile.seconds,
            plan.settings,
            plan.evaluations_of(first),
            lambda name, point: tell(Evaluated(seed=task.seed, method=name, point=point)),
            plan.policy,
            tuned=plan.tuned,
            checkpoints=checkpoints,
            read_test=plan.read_test,
            on_end=export,
        )
        tell(ending_of(result, task.seed))
    if result.error is None and checkpoints and folder:
        checkpoints.remove()
    # What a failed one had charged is not kept.
    return result if result.error is None else fold(told) or result


def compare(plan: Plan, profile: Profile, on_event: OnEvent = ignore) -> Comparison:
    """Train every method with every seed; nothing is kept but what is returned.

    Raises:
        ValueError: as `check` does, before anything is run.
    """
    methods = check(plan, profile)
    trainings = [run_training(plan, task, methods, profile, on_event) for task in tasks(plan)]
    return Comparison(plan, profile, tuple(trainings))


def methods_by_training(plan: Plan) -> list[tuple[str, ...]]:
    """Group the methods that can share one training: those of the constant rate, and alike."""
    together: dict[float, list[str]] = {}
    alone: list[tuple[str, ...]] = []
    for name in plan.methods:
        # A method of a user's own may change the training that it follows.
        known = built_in(name)
        if known and known.schedule is constant and known.share == 1:
            together.setdefault(plan.settings_of(name).learning_rate, []).append(name)
        else:
            alone.append((name,))
    return [*map(tuple, together.values()), *alone]
