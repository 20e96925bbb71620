"""What the operations of a comparison cost on this machine: the reference profile."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from baselines.experiment.plan import Plan, costs_depend_on, methods_by_training
from baselines.methods.method import Method
from baselines.methods.names import DEFAULT, find, split_names
from baselines.methods.part import MethodError
from baselines.methods.recipes import RecipePart
from baselines.training.loop import sample, seed_step
from baselines.workloads import load
from baselines.workloads.base import Batch, Workload
from timing import (
    CalibrationTarget,
    Operation,
    Profile,
    calibrate_in_processes,
    count_flops,
)
from timing.calibration.processes import RETRIES
from timing.calibration.profile import FLOPS
from timing.calibration.timetable import LEAST_SECONDS, START_SECONDS
from timing.calibration.warnings import LEAST_PROCESSES, by_kind, profile_warnings
from timing.rst.schedules import constant

# Of the whole comparison's time, which is a quarter of what is trained.
SHARE_OF_TRAINING = 1 / 4
LONGEST_SECONDS = 45.0
# Where joules can be read: five seconds of each operation, in half of the time.
LONGEST_WITH_GPU_SECONDS = 120.0
# Of two the interval is three times as wide, and of no use.
FEWEST_PROCESSES = 3
# Of all trainings: from here on a disturbed process is measured again.
LONG_SECONDS = 600.0


@dataclass(frozen=True)
class Effort:
    """What a calibration may take.

    Attributes:
        seconds: all told.
        processes: the fewest that measure.
    """

    seconds: float
    processes: int

    @property
    def is_small(self) -> bool:
        """Say whether a better one would take more than its share of the comparison."""
        return self.processes < LEAST_PROCESSES


def effort(plan: Plan, jobs: int = 1) -> Effort:
    """Return what calibration may take: a fifth of the comparison, or three processes if more."""
    each = START_SECONDS + LEAST_SECONDS
    seconds = SHARE_OF_TRAINING * training_seconds_of(plan) / jobs
    longest = LONGEST_WITH_GPU_SECONDS if torch.cuda.is_available() else LONGEST_SECONDS
    seconds = min(max(FEWEST_PROCESSES * each, seconds), longest)
    return Effort(seconds, min(int(seconds / each), LEAST_PROCESSES))


def warnings_of(profile: Profile) -> list[str]:
    """Return lines that warn of what is wrong with a profile; none if it is sound."""
    return [
        f"WARNING: of the reference profile, {each}" for each in by_kind(profile_warnings(profile))
    ]


def measure_profile(
    plan: Plan,
    on_progress: Callable[[float, str], None],
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure, on this machine and in fresh processes, every operation the plan can charge.

    The profile has those of the default methods too, and so serves all that run no others. It is
    not refused on a busy machine, where a comparison may still be wanted: the profile's warnings
    say what is wrong with it.

    Args:
        plan: what is compared.
        on_progress: told the fraction done, from 0 to 1, and what has just happened.
        jobs: trainings at a time, by which the comparison is shorter.
        say: told what is left out of it, and why.

    Raises:
        ValueError: the workload was not made by `baselines.workloads.load`.
        MethodError: a method needs a package that is missing, or does not say how an operation of
            its own is measured.
        CalibrationError: a process failed.
    """
    if plan.workload.source is None:
        raise ValueError(
            f"workload {plan.workload.name} cannot be loaded in another process to be measured: "
            "get it from baselines.workloads.load, or give a profile"
        )
    # In this process first, where an error can be told.
    operations(plan.workload, plan.methods, costs_depend_on(plan.methods))
    name, data = plan.workload.source
    own = effort(plan, jobs)
    return calibrate_in_processes(
        "baselines.experiment.calibration:calibration_target",
        {
            "workload": name,
            "data": data,
            "methods": ",".join(plan.names),
            **costs_depend_on(plan.methods),
        },
        seconds=own.seconds,
        threads=torch.get_num_threads(),
        force=True,
        on_progress=on_progress,
        say=say,
        processes=own.processes,
        # Not to be longer than a fifth of a short comparison; the warnings say what is disturbed.
        retries=RETRIES if training_seconds_of(plan) > LONG_SECONDS else 0,
    )


def training_seconds_of(plan: Plan) -> float:
    """Return the reference seconds of all trainings, each at its budget."""
    return plan.budget.seconds * len(methods_by_training(plan)) * len(plan.seeds)


def calibration_target(
    workload: str, data: str | None = None, methods: str = "", **depends_on: int
) -> CalibrationTarget:
    """Return what `python -m timing calibrate` of this module's name and this function's measures.

    Args:
        workload: a name or a Python file, as of `--workload`.
        data: as of `--data`.
        methods: as of `--methods`. The default ones, and those that charge nothing else, need not
            be named.
        depends_on: settings that costs depend on, by their names, such as LAWA's k; by default
            those of the methods.

    Raises:
        MethodError: a method is at fault, or none has such a setting.
    """
    loaded = load(workload, None if data is None else Path(data))
    found = [find(name) for name in split_names(methods) if name]
    known = costs_depend_on(found)
    if unknown := sorted(depends_on.keys() - known.keys()):
        raise MethodError(f"costs depend on {', '.join(known)} and not on {unknown[0]}")
    known |= depends_on
    signature = {"workload": loaded.name, **loaded.signature, **known, **flops_per_step(loaded)}
    return CalibrationTarget(signature, operations(loaded, found, known))


def flops_per_step(workload: Workload) -> dict[str, int]:
    """Return the FLOPs of a training step without the optimizer; empty if they cannot be counted.

    Kernels of a user's own need not run as PyTorch's counter wants them to.
    """

    def make() -> Callable[[], object]:
        torch.manual_seed(0)
        model = workload.make_model().train()
        batch = next(workload.batches(0))
        return lambda: workload.loss(model, batch).backward()

    try:
        return {FLOPS: count_flops(make, device="cpu").total}
    except RuntimeError as error:
        warnings.warn(f"the FLOPs of {workload.name} are not counted: {error}", stacklevel=2)
        return {}


def operations(
    workload: Workload, methods: Iterable[Method], depends_on: Mapping[str, int]
) -> dict[str, Operation]:
    """Return the operations of these methods and of the default ones, as training runs them.

    Methods of one recipe are measured on one model; an operation that several have is measured for
    the first.

    Args:
        workload: model and data.
        methods: beside the default ones.
        depends_on: settings that costs depend on, as of `costs_depend_on`.

    Raises:
        MethodError: a method does not say how one of its operations is measured.
    """
    batches = workload.batches(0)
    loaded = [next(batches)]

    def load_data() -> None:
        loaded[0] = next(batches)

    found = {"load_data": Operation(load_data)}
    by_recipe: dict[RecipePart, list[Method]] = {}
    for method in (*map(find, DEFAULT), *methods):
        by_recipe.setdefault(method.recipe, []).append(method)
    for group in by_recipe.values():
        measured = _operations_of(group, workload, depends_on, lambda: loaded[0], found)
        found |= {name: how for name, how in measured.items() if name not in found}
    for method in methods:
        used = {
            *method.step_operations(workload),
            *method.max_evaluation_operations(workload),
        }
        if missing := used - found.keys():
            raise MethodError(
                f"{method.name}: the operations() of its parts do not say how "
                f"{', '.join(sorted(missing))} can be measured"
            )
    return found


def _operations_of(
    methods: Sequence[Method],
    workload: Workload,
    depends_on: Mapping[str, int],
    batch: Callable[[], Batch],
    known: Mapping[str, Operation],
) -> dict[str, Operation]:
    """Return the operations of methods of one recipe, on a model of their own."""
    torch.manual_seed(0)
    model = workload.make_model().train()
    rate = workload.learning_rate * methods[0].recipe.rate_factor
    recipe = methods[0].begin_recipe(model, workload, rate)
    base = recipe.optimizer
    added: dict[str, Operation] = {}
    for method in methods:
        part = method.averager.for_calibration()
        part = replace(part, **{name: depends_on[name] for name in part.costs_depend_on})
        averager = replace(method, averager=part).begin_averager(model, base, workload)
        if recipe.optimizer is base:
            recipe.optimizer = averager.optimizer
        own = averager.operations()
        unmeasured = {name: how for name, how in own.items() if name not in {*known, *added}}
        if unmeasured:
            # It may read what the others have made: a window, which is to be full.
            for name in own.keys() - unmeasured.keys():
                for _ in range(max(1, part.copies)):
                    own[name].run()
            added |= unmeasured
    schedule = LambdaLR(recipe.optimizer, constant)
    steps = itertools.count()

    def as_trained(run: Callable[[], object]) -> Callable[[], None]:
        updates: bool | None = None

        def step() -> None:
            nonlocal updates
            seed_step(0, next(steps), 0)
            if updates is None:
                # What only looks at the weights is followed by no step of the schedule.
                before = sample(model)
                run()
                updates = sample(model) != before
            else:
                run()
            if updates:
                schedule.step()

        return step

    own = recipe.operations(batch)
    # What runs more rarely follows an update, which has these with it.
    ran = {
        name: Operation(as_trained(how.run)) if how.every == 1 else how for name, how in own.items()
    }
    if "evaluate" not in known:
        added["evaluate"] = Operation(partial(workload.evaluate, model), every=40)
    return {**ran, **added}
