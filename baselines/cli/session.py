"""Run a command's comparisons from end to end: profile, tuning, trainings and records."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import typer

from baselines.analysis.verdict import too_few
from baselines.cli.console import console, say, show, show_ranking, table_of
from baselines.cli.duration import CALIBRATING, TUNING, phases_of, training_of
from baselines.cli.progress import Course, duration
from baselines.cli.screen import Screen, TuningScreen
from baselines.experiment import tuning
from baselines.experiment.ablation import configs_of
from baselines.experiment.calibration import effort, measure_profile, warnings_of
from baselines.experiment.cluster import Cluster
from baselines.experiment.comparison import Comparison
from baselines.experiment.engine import Engine
from baselines.experiment.executor import run_parallel
from baselines.experiment.manifest import REFERENCE, FolderError
from baselines.experiment.plan import Plan, check, tasks
from baselines.experiment.processes import Processes
from baselines.experiment.resume import resume
from baselines.experiment.store import (
    budget_folder,
    check_kept,
    read_profile,
    refuse_changed,
    write_or_verify,
    write_profile,
)
from baselines.methods.names import file_digests
from baselines.methods.part import MethodError
from baselines.tracking.follow import Follower, publish_command
from baselines.training import distributed
from baselines.training.events import OnEvent
from timing import CalibrationError, Profile
from timing.cli import commandline

# Runs a plan, kept in a folder, as `resume` does.
Train = Callable[..., Comparison]


def engine(
    root: Path, jobs: int, cluster: str | None, options: dict[str, str | int]
) -> AbstractContextManager[Engine | None]:
    """Return what starts processes; None where this one trains itself."""
    if distributed.world_size() > 1 and (cluster or jobs > 1):
        raise typer.BadParameter(
            "under torchrun trainings come one after another: no --jobs, no --cluster"
        )
    if cluster is None:
        if options:
            raise typer.BadParameter("--cluster-option is for --cluster")
        return Processes() if jobs > 1 else nullcontext()
    try:
        return Cluster(root / "cluster", cluster, options)
    except ValueError as error:
        raise typer.BadParameter(f"--cluster: {error}") from error


def refuse(plans: list[Plan], profile: Profile) -> None:
    """Refuse plans that the profile cannot charge, as a usage error."""
    try:
        for plan in plans:
            check(plan, profile)
            if plan.trials:
                tuning.check(plan, profile)
    except ValueError as error:
        raise typer.BadParameter(commandline.said_of(error)) from error


def run_comparison(
    root: Path,
    plans: list[Plan],
    given: Profile | None,
    engine: Engine | None,
    jobs: int,
    *,
    publish: bool,
) -> list[Comparison]:
    """Compare under each budget, going on with what is in the folder, and print the results.

    Raises:
        FolderError: something in the folder is damaged, or was removed meanwhile.
        StorageError: the disk takes no more.
        CheckpointError: all checkpoints of a training are damaged.
        CommandError: a trial of tuning did not end.
    """
    texts = file_digests(plans[0].methods)
    phases = phases_of(plans, given or read_profile(root), jobs)
    _announce(plans, phases, jobs)
    with Course(phases) as course:
        profile = _profile_in(root, plans, given, course, jobs)
        refuse(plans, profile)
        for phase, seconds in phases_of(plans, profile, jobs).items():
            course.expect(phase, seconds)
        train: Train = partial(resume, warn=say)
        if engine:
            train = partial(run_parallel, engine=engine, jobs=jobs)

        def try_out(*arguments: Any) -> Comparison:
            refuse_changed(texts)
            return train(*arguments)

        say(f"Kept in {root}: the same command goes on from there; remove it to start anew.")
        comparisons = []
        with publishing(root, publish=publish):
            for plan in plans:
                path = budget_folder(root, plan)
                if plan.trials:
                    course.begin(TUNING.format(plan.budget.seconds))
                    plan = tuned(plan, profile, path, try_out, course)
                refuse_changed(texts)
                if distributed.rank() > 0:
                    comparisons.append(resume(plan, profile, path))
                    continue
                key = write_or_verify(path, plan).id
                course.begin(training_of(plan))
                # Of the windows that an ablation tries none is taken out.
                export = not configs_of(plan)
                screen = Screen(plan, course)
                comparisons.append(train(plan, profile, path, screen, export_models=export))
                show(comparisons[-1])
                check_kept(path, key, comparisons[-1])
            if len(comparisons) > 1:
                show_ranking(comparisons)
            if distributed.rank() == 0:
                say(f"As one file for anyone: {report_command(root)}")
            if publish:
                course.begin("sending to MLflow")
    return comparisons


def _announce(plans: list[Plan], phases: dict[str, float], jobs: int) -> None:
    """Say what will be done, and about how long it takes."""
    first = plans[0]
    budgets = ", ".join(f"{plan.budget.seconds:g} s" for plan in plans)
    count = sum(len(tasks(plan)) * (plan.trials + 1) for plan in plans)
    seeds = len(first.seeds)
    own = f", of which calibration {duration(phases[CALIBRATING])}" if CALIBRATING in phases else ""
    say(
        f"{first.workload.name}: {len(first.methods)} method(s) with {seeds} seed(s), {budgets} of "
        f"RST a run, from {count} trainings, {jobs} at a time: about "
        f"{duration(sum(phases.values()))}{own}."
    )
    if few := too_few(seeds):
        say(f"WARNING: {few}; give five (--seeds 5)")


def report_command(root: Path) -> str:
    """Return what writes a folder as one HTML file, to be typed."""
    return shlex.join([sys.executable, "-m", "baselines", "report", str(root)])


@contextmanager
def publishing(root: Path, *, publish: bool) -> Iterator[None]:
    """Send to MLflow what a block leaves in a folder, while it runs, and print what came of it."""
    if distributed.rank() > 0:
        yield
    elif publish:
        with Follower(root) as follower:
            yield
        for line in follower.said:
            say(line)
    else:
        yield
        say(f"Nothing was sent to MLflow: {publish_command(root)} does it.")


def _profile_in(
    root: Path, plans: list[Plan], given: Profile | None, course: Course, jobs: int
) -> Profile:
    """Return the profile of a folder, which it is given or calibrated for when it is begun."""
    if distributed.rank() == 0 and read_profile(root) is None:
        write_profile(root, given or calibrated(plans[0], course, jobs))
    distributed.barrier()
    profile = read_profile(root)
    if profile is None or (given is not None and profile != given):
        raise FolderError(
            f"{root / REFERENCE} is not the profile that its comparisons were begun with: put that "
            f"back, or remove {root} to start anew"
        )
    # Also of one that was given or kept: who goes on with it need not have seen them.
    if distributed.rank() == 0:
        for line in warnings_of(profile):
            say(line)
    return profile


def calibrated(plan: Plan, course: Course, jobs: int) -> Profile:
    """Measure a profile, with nothing beside it, print what it says of itself, and return it."""
    course.begin(CALIBRATING)
    if (own := effort(plan, jobs)).is_small:
        say(
            f"A small calibration for a small budget: {own.processes} processes, about "
            f"{own.seconds:.0f} s, so the reference is known to wider intervals; a larger budget "
            "or --reference FILE gives a better one."
        )
    left_out: list[str] = []
    try:
        profile = measure_profile(plan, course.update, jobs, left_out.append)
    except MethodError as error:
        raise typer.BadParameter(f"--methods: {error}") from error
    except CalibrationError as error:
        if error.stderr:
            say(error.stderr.rstrip())
        raise commandline.CommandError(str(error)) from error
    say("Reference profile:")
    say(f"  measured on {profile.machine}")
    if profile.machine.gpus.unavailable:
        say(f"  {profile.machine.gpus.unavailable}")
    for line in left_out:
        say(f"  {line}")
    say(
        f"  its costs give a reference iteration {1 + profile.additivity_error:.1%} of its "
        "measured time"
    )
    return profile


def tuned(plan: Plan, profile: Profile, path: Path, train: Train, course: Course) -> Plan:
    """Return the plan with its trials' best settings; trials are kept beside its own folder."""
    numbers = itertools.count()

    def run_trial(trial: Plan, profile: Profile, on_event: OnEvent) -> Comparison:
        folder = path.with_name(f"{path.name}-trial-{next(numbers)}")
        return train(trial, profile, folder, on_event)

    try:
        found = tuning.tune(plan, profile, TuningScreen(plan, course), run_trial)
    except tuning.CutOffError as error:
        raise commandline.CommandError(
            f"{error}. The same command tries again what did not end, and nothing else"
        ) from error
    table = path.with_name(f"{path.name}-trials.json")
    if distributed.rank() == 0:
        tuning.write(found, table)
    console.print(table_of(tuning.rows(found), tuning.title(plan)))
    for line in tuning.edges(found):
        say(line)
    say(f"All trials: {table}")
    return found
