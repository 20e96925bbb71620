"""The command that sends comparisons to MLflow."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from baselines.cli.console import say
from baselines.experiment.kept import Kept, folders_of
from baselines.experiment.lock import Lock, LockedError, is_locked
from baselines.experiment.manifest import REFERENCE, FolderError
from baselines.tracking.follow import SECONDS_AT_END
from baselines.tracking.store_address import take_password_out
from timing.cli import commandline


def publish_command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Of comparisons, whether they have ended or not."),
    ],
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that does not answer.")
    ] = SECONDS_AT_END,
    follow: Annotated[
        bool, typer.Option("--follow", hidden=True, help="Go on until standard input ends.")
    ] = False,
) -> None:
    """Send comparisons to MLflow: what is there already stays, what is new is added.

    Reads the folders, which may be from another machine, and runs nothing that they name. The exit
    status is 1 where MLflow has not taken all.
    """
    if not wait >= 0:
        raise typer.BadParameter(f"--wait must be at least 0: {wait}")
    try:
        for folder in folders:
            for one in folders_of(folder):
                Kept.read(one).logs()
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error
    take_password_out()
    try:
        from baselines.tracking import review, send
    except ImportError as error:
        raise commandline.CommandError(
            f"MLflow cannot be imported ({error}): pip install 'lawa-opt[baselines]'"
        ) from error
    try:
        for folder in folders:
            root = folder if (folder / REFERENCE).exists() else folder.parent
            # One at a time: another one would not see the runs that this one makes.
            place = root / "publishing"
            if is_locked(place):
                print(f"another process publishes {root}: waiting", file=sys.stderr)
            with Lock(place, math.inf):
                done = send.follow(root, wait) if follow else send.send(folder, root, wait)
            there = "" if done.is_new else "nothing new, it has the "
            say(
                f"Published to the experiment {done.experiment} of {done.store}: {there}"
                f"{done.runs} runs with {done.points} points."
            )
            for line in review.review_instructions(
                done.store, done.experiment_id, done.comparisons
            ):
                say(line)
            if done.refusals:
                raise commandline.CommandError(
                    f"{len(done.refusals)} refusal(s) by MLflow, of which the first is: "
                    f"{done.refusals[0]}"
                )
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error
    except (send.NotPublishedError, LockedError) as error:
        raise commandline.CommandError(str(error)) from error
