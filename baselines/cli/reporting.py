"""The command that writes comparisons as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baselines.analysis import html_report
from baselines.cli.console import say
from baselines.experiment.kept import Kept, folders_of
from baselines.experiment.manifest import FolderError
from baselines.training.checkpoint import StorageError, write_atomically
from timing.cli import commandline


def report_command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Of comparisons that have ended.")
    ],
    out: Annotated[Path, typer.Option(help="The file; an earlier report there is replaced.")] = (
        Path("lawa-report.html")
    ),
) -> None:
    """Write one HTML file that anyone can open: verdict, tables, curves and conditions.

    Reads the folders, which may be from another machine, and runs nothing that they name.
    """
    _check_out(out)
    try:
        kept = [Kept.read(one) for folder in folders for one in folders_of(folder)]
        found = [(each, each.comparison(with_failed=True)) for each in kept]
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        write_atomically(out, html_report.page(found).encode())
    except StorageError as error:
        raise commandline.CommandError(f"--out: {error}") from error
    say(f"Report of {len(found)} comparison(s): {out}")


def _check_out(out: Path) -> None:
    """Refuse a file that cannot be written, or is something else than a report."""
    if out.is_dir() or not out.parent.is_dir():
        raise typer.BadParameter(f"--out: {out} cannot be written: it is a folder, or in none")
    mark = html_report.MARK.encode()
    if out.exists():
        with out.open("rb") as file:
            if file.read(len(mark)) != mark:
                raise typer.BadParameter(f"--out: {out} is there and is no report: name another")
