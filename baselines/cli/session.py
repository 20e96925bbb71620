"""Run a command's comparisons from end to end: profile, tuning, trainings and records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import typer

from baselines.cli.console import (
    Screen,
    TuningBar,
    console,
    progress_bar,
    say,
    show,
    show_ranking,
    table_of,
)
from baselines.experiment import tuning
from baselines.experiment.ablation import configs_of
from baselines.experiment.calibration import measure_profile
from baselines.experiment.cluster import Cluster
from baselines.experiment.comparison import Comparison
from baselines.experiment.engine import Engine
from baselines.experiment.executor import run_parallel
from baselines.experiment.manifest import REFERENCE, FolderError
from baselines.experiment.plan import Plan, check
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
from timing import CalibrationError, Profile, profile_warnings
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
    profile = _profile_in(root, plans, given)
    refuse(plans, profile)
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
                plan = tuned(plan, profile, path, try_out)
            refuse_changed(texts)
            if distributed.rank() > 0:
                comparisons.append(resume(plan, profile, path))
                continue
            key = write_or_verify(path, plan).id
            with progress_bar() as progress:
                screen = Screen(plan, progress)
                # Of the windows that an ablation tries none is taken out.
                export = not configs_of(plan)
                comparisons.append(train(plan, profile, path, screen, export_models=export))
            show(comparisons[-1])
            check_kept(path, key, comparisons[-1])
        if len(comparisons) > 1:
            show_ranking(comparisons)
    return comparisons


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


def _profile_in(root: Path, plans: list[Plan], given: Profile | None) -> Profile:
    """Return the profile of a folder, which it is given or calibrated for when it is begun."""
    if distributed.rank() == 0 and read_profile(root) is None:
        write_profile(root, given or calibrated(plans[0]))
    distributed.barrier()
    profile = read_profile(root)
    if profile is None or (given is not None and profile != given):
        raise FolderError(
            f"{root / REFERENCE} is not the profile that its comparisons were begun with: put that "
            f"back, or remove {root} to start anew"
        )
    return profile


def calibrated(plan: Plan) -> Profile:
    """Measure a profile, print what it says of itself, and return it."""
    with progress_bar() as progress:
        task = progress.add_task("calibrating the reference profile", total=1.0)

        def tell(done: float, said: str) -> None:
            progress.update(task, completed=done, description=f"calibrating: {said}")

        try:
            profile = measure_profile(plan, tell)
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
    say(
        f"  its costs give a reference iteration {1 + profile.additivity_error:.1%} of its "
        "measured time"
    )
    for warning in profile_warnings(profile):
        say(f"  WARNING: {warning}")
    return profile


def tuned(plan: Plan, profile: Profile, path: Path, train: Train) -> Plan:
    """Return the plan with its trials' best settings; trials are kept beside its own folder."""
    numbers = itertools.count()

    def run_trial(trial: Plan, profile: Profile, on_event: OnEvent) -> Comparison:
        folder = path.with_name(f"{path.name}-trial-{next(numbers)}")
        return train(trial, profile, folder, on_event)

    try:
        with progress_bar() as progress:
            found = tuning.tune(plan, profile, TuningBar(plan, progress), run_trial)
    except tuning.CutOffError as error:
        raise commandline.CommandError(
            f"{error}. The same command tries again what did not end, and nothing else"
        ) from error
    table = path.with_name(f"{path.name}-trials.json")
    if distributed.rank() == 0:
        tuning.write(found, table)
    console.print(table_of(tuning.rows(found), tuning.title(plan)))
    say(f"All trials: {table}")
    return found
