"""Compare methods, try windows, and score comparisons: the commands and their options."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib import rcParams

from baselines.analysis import score
from baselines.analysis.performance_profile import performance_profile
from baselines.cli import options, session
from baselines.cli.console import console, say, table_of
from baselines.cli.dry_run import estimate, estimate_table
from baselines.cli.options import (
    ClusterOption,
    ClusterOptions,
    DataOption,
    DryRunOption,
    FolderOption,
    FreeOption,
    JobsOption,
    PolicyOption,
    PublishOption,
    RateOption,
    ReferenceOption,
    SeedsOption,
    ThreadsOption,
    WorkloadOption,
)
from baselines.cli.publishing import publish_command
from baselines.cli.read_as import ReadOption, parsed, try_reading
from baselines.cli.reporting import report_command
from baselines.experiment.ablation import WindowConfig, methods_of
from baselines.experiment.kept import read_comparison
from baselines.experiment.lock import Lock, LockedError
from baselines.experiment.manifest import FolderError
from baselines.experiment.plan import Plan
from baselines.experiment.store import root_of
from baselines.methods.averagers.lawa import MOST_SNAPSHOTS
from baselines.methods.names import AVERAGERS, DEFAULT, RECIPES, SCHEDULES, SHORT
from baselines.training import distributed
from baselines.training.checkpoint import CheckpointError, StorageError
from baselines.training.rounding import FLOAT
from timing import Profile, ProfileError
from timing.cli import commandline

app = typer.Typer(add_completion=False)

# A name may hold what matplotlib would take for a formula.
rcParams["text.parse_math"] = False


@app.callback()
def _commands(version: commandline.VersionOption = False) -> None:
    """Compare LAWA with its baselines under one fixed budget."""


@app.command("compare")
def compare_command(
    workload: WorkloadOption = "pydocs",
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Reference time each run may spend, such as 20s, 1.5m or 6h; several, as in "
            "30s,60s,120s, show how the ranking moves with the budget.",
            show_default="the workload's: pydocs 15s, digits 5s",
        ),
    ] = None,
    seeds: SeedsOption = 3,
    methods: Annotated[
        str,
        typer.Option(
            help="Which methods, with commas between them: each a sum of a schedule "
            f"({', '.join(SCHEDULES)}), an averager ({', '.join(AVERAGERS)}) and a recipe "
            f"({', '.join(RECIPES)}), of which each may be left out, such as cosine+ema. Any may "
            "be a Python file that says part = ..., and may have settings, such as lawa(k=10); a "
            "schedule may end early, as decayed@50% does at half of the budget. Short names: "
            f"{', '.join(SHORT)}."
        ),
    ] = ",".join(DEFAULT),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of a part, for all methods that have it, such as lawa.k=10 or "
            "ema.decay=0.999; may be given more than once.",
        ),
    ] = None,
    lr: RateOption = None,
    reference: ReferenceOption = None,
    policy: PolicyOption = "algoperf",
    free: FreeOption = None,
    read: ReadOption = FLOAT,
    trials: Annotated[
        int,
        typer.Option(
            help="Settings tried for each method before, on the validation part and with a seed of "
            "their own: the peak rate, and its settings. 0: one rate for all."
        ),
    ] = 0,
    threads: ThreadsOption = 1,
    folder: FolderOption = Path("lawa-runs"),
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    cluster_option: ClusterOptions = None,
    dry_run: DryRunOption = False,
    publish: PublishOption = True,
) -> None:
    """Train every method with every seed under one budget of reference system time.

    Prints the table and what it supports; everything is kept in a folder. A run that diverges is
    a result, shown in its method's row. The exit status is 1 where a run did not end, since it
    raised an error or its process was killed (the same command goes on with it); where every run
    failed; and where the comparison's folder cannot be used. It is 2 for a wrong option, 130 or 143
    for an interrupt.
    """
    options.set_threads(threads)
    options.within("--trials", trials, 0, options.MOST_TRIALS)
    chosen = options.methods(methods, settings or ())
    plans = [
        replace(plan, trials=trials, read=parsed(read))
        for plan in options.plans(workload, data, budget, seeds, chosen, lr, policy, free)
    ]
    _run(plans, reference, folder, jobs, cluster, cluster_option, dry_run=dry_run, publish=publish)


@app.command("ablate")
def ablate_command(
    workload: WorkloadOption = "pydocs",
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Reference time each window may spend.",
            show_default="the workload's: pydocs 15s, digits 5s",
        ),
    ] = None,
    seeds: SeedsOption = 3,
    k: Annotated[
        str, typer.Option(help="Lengths of the window, with commas between.")
    ] = "1,2,3,5,8",
    every: Annotated[
        str, typer.Option(help="Intervals in steps, or auto, with commas between.")
    ] = "auto,5,20,80",
    lr: RateOption = None,
    reference: ReferenceOption = None,
    policy: PolicyOption = "algoperf",
    free: FreeOption = None,
    read: ReadOption = FLOAT,
    threads: ThreadsOption = 1,
    folder: FolderOption = Path("lawa-runs"),
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    cluster_option: ClusterOptions = None,
    dry_run: DryRunOption = False,
    publish: PublishOption = True,
) -> None:
    """Try every k with every interval, all on one training of the constant rate a seed.

    Prints the metric of each at half of the budget and at its end, beside the live weights;
    everything is kept, resumed and published as by compare.
    """
    options.set_threads(threads)
    ks = [options.count("--k", text, MOST_SNAPSHOTS) for text in k.split(",")]
    intervals = [options.interval(text.strip()) for text in every.split(",")]
    windows = [WindowConfig(length, interval) for interval in intervals for length in ks]
    if len(set(windows)) < len(windows):
        raise typer.BadParameter(f"--k or --every names a value twice: {k}; {every}")
    plans = [
        replace(plan, read_test=False, read=parsed(read))
        for plan in options.plans(
            workload, data, budget, seeds, methods_of(windows), lr, policy, free
        )
    ]
    _run(plans, reference, folder, jobs, cluster, cluster_option, dry_run=dry_run, publish=publish)


def _run(
    plans: list[Plan],
    reference: Path | None,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    cluster_options: list[str] | None,
    *,
    dry_run: bool,
    publish: bool,
) -> None:
    """Run plans that differ in their budget alone, or say what they will take."""
    # Only one of the processes that train together has something to say.
    console.quiet = distributed.launched_rank() > 0
    jobs = options.jobs(jobs, plans, cluster, torch.get_num_threads())
    for_cluster = dict(map(options.cluster_option, cluster_options or ()))
    given = options.read_profile(reference) if reference else None
    if given:
        session.refuse(plans, given)
    options.try_out(plans[0])
    if plans[0].free:
        say(f"FREE: {', '.join(plans[0].free)}: a run takes longer than its budget says.")
    for line in try_reading(plans[0]):
        say(line)
    if dry_run:
        with tempfile.TemporaryDirectory() as nowhere:
            session.engine(Path(nowhere), jobs, cluster, for_cluster)
        if plans[0].free and not given:
            say("Without --reference what is free is counted here: there will be more steps.")
        for plan in plans:
            _dry_run(plan, given, jobs)
        return
    root = root_of(folder, plans, given.model_dump_json() if given else "")
    try:
        with (
            distributed.process_group(),
            session.engine(root, jobs, cluster, for_cluster) as engine,
            Lock(root) if distributed.rank() == 0 else nullcontext(),
        ):
            comparisons = session.run_comparison(root, plans, given, engine, jobs, publish=publish)
    except (StorageError, CheckpointError, LockedError, FolderError, ProfileError) as error:
        raise commandline.CommandError(str(error)) from error
    failures = [comparison.failure for comparison in comparisons if comparison.failure]
    if failures:
        if any(comparison.cut_off for comparison in comparisons):
            failures.append("the same command goes on with what did not end")
        raise commandline.CommandError("; ".join(failures))


app.command("publish")(publish_command)
app.command("report")(report_command)


@app.command("score")
def score_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Of comparisons that have ended, of the same methods on other workloads or under "
            "other budgets.",
        ),
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Image file for the performance profile.")
    ] = None,
) -> None:
    """Score the methods of several comparisons as AlgoPerf does, by their times to the target.

    Reads the folders and runs nothing that they name.
    """
    if plot is not None:
        options.check_picture("--plot", plot)
    try:
        comparisons = [read_comparison(folder) for folder in folders]
        found = score.scores(comparisons)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(table_of(score.table(found, comparisons), "AlgoPerf score"))
    say(score.conditions(comparisons))
    if plot:
        try:
            performance_profile(found).savefig(plot, dpi=120)
        except OSError as error:
            raise commandline.CommandError(f"--plot: {plot}: {error.strerror}") from error
        say(f"Performance profile: {plot}")


def _dry_run(plan: Plan, profile: Profile | None, jobs: int) -> None:
    """Print what the plan will take; a plan that cannot start ends with status 1."""
    try:
        found = estimate(plan, profile, jobs)
    except ValueError as error:
        raise typer.BadParameter(commandline.said_of(error)) from error
    console.print(estimate_table(plan, found))
    for line in found.errors:
        say(f"PROBLEM: {line}")
    if found.errors:
        raise typer.Exit(1)
    say("Nothing speaks against it: without --dry-run it starts.")
