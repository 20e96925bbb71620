"""`python -m lawa_opt study`: evaluate windows over checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lawa_opt.averaging_files.choose import Selection
from lawa_opt.cli.choosing import AtLeast, FromStep, Key, Last, Order, StripPrefix, ToStep
from lawa_opt.cli.console import InterruptedWork, say
from lawa_opt.messages import ArgumentError
from lawa_opt.studying.study import study as run_study
from lawa_opt.weights_by_step import NAMES

T = TypeVar("T")


def study(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="INPUTS...", help="Checkpoints, as average takes them."),
    ],
    evaluate: Annotated[
        str,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Runs FILE.py; FUNCTION(state_dict) returns a number, a pair of them (of two "
            "halves of the evaluations) or a dict of these by name.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Makes the model once; --evaluate is given the model with the weights loaded.",
        ),
    ] = None,
    k: Annotated[str, typer.Option(help="How many checkpoints to average.")] = "1,2,4,6,10",
    every: Annotated[str, typer.Option(help="2 averages each second checkpoint.")] = "1",
    weights: Annotated[str, typer.Option(help=f"{NAMES}; several with commas.")] = "uniform",
    metric: Annotated[str | None, typer.Option(help="That decides; else the first.")] = None,
    higher_is_better: Annotated[bool, typer.Option("--higher-is-better")] = False,
    target: Annotated[float | None, typer.Option(help="Of the metric; else the live end.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for study.csv, .json, .png and what is kept of it.")
    ] = Path("study"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes that evaluate.")] = 1,
    order: Order = "number",
    key: Key = "",
    strip_prefix: StripPrefix = None,
    last: Last = None,
    from_step: FromStep = None,
    to_step: ToStep = None,
    at_least: AtLeast = None,
) -> None:
    """Find out which window over checkpoints would have been best, and the steps it saves."""
    made = (0, 0)
    stripped = tuple(strip_prefix or ())
    console = Console(stderr=True)
    bar = (TextColumn("evaluations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("study", total=None)

        def progress(done: int, total: int) -> None:
            nonlocal made
            made = (done, total)
            shown.update(task, completed=done, total=total)

        try:
            found = run_study(
                checkpoints,
                evaluate,
                model=model,
                k=_listed("k", k, int),
                every=_listed("every", every, int),
                weights=_listed("weights", weights, str),
                metric=metric,
                higher_is_better=higher_is_better,
                target=target,
                out=out,
                jobs=jobs,
                selection=Selection(order, key, stripped, last, from_step, to_step, at_least),
                progress=progress,
            )
        except KeyboardInterrupt:
            done, total = made
            said = f"interrupted: {done} of {total} evaluations are kept in {out}"
            raise InterruptedWork(f"{said}; the same command goes on from there") from None
    say(f"{found}\nwritten: {out}/study.csv, study.json, study.png", written=str(out))


def _listed(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--{name} takes values with commas between them: {text!r}") from error
