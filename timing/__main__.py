"""The command line: `python -m timing probe` and `python -m timing show PROFILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from timing.commandline import run
from timing.machine import this_machine
from timing.profile import Profile, ProfileError

app = typer.Typer(add_completion=False)
console = Console()


@app.callback()
def _commands() -> None:
    """Reference system time: what this machine is, and what a profile says."""


@app.command()
def probe() -> None:
    """Print what this machine is, as a profile measured here would record it."""
    console.print_json(this_machine().model_dump_json())


@app.command()
def show(path: Annotated[Path, typer.Argument(metavar="PROFILE")]) -> None:
    """Print a reference profile, once it has been checked."""
    try:
        profile = Profile.read(path)
    except ProfileError as error:
        raise typer.BadParameter(str(error)) from error
    table = Table(title=f"{path.name}, measured {profile.created:%Y-%m-%d %H:%M %Z}")
    for head in ("operation", "median", "interquartile range", "samples"):
        table.add_column(head, justify="left" if head == "operation" else "right")
    for operation, cost in profile.costs.items():
        table.add_row(
            operation,
            f"{cost.median_seconds * 1e3:.4f} ms",
            f"{cost.spread_seconds * 1e3:.4f} ms",
            str(cost.samples),
        )
    console.print(table)
    for line in (
        f"machine: {profile.machine}",
        "workload: " + ", ".join(f"{key}={value}" for key, value in profile.workload.items()),
        f"closure: {profile.closure:+.1%}; other processes kept {profile.other_cores:.2f} cores "
        "busy",
    ):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    run(app)
