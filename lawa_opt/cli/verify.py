"""`python -m lawa_opt verify`: make an average again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lawa_opt.averaging_files.verify import verify_average
from lawa_opt.cli.console import progress_bar, say


def verify(
    out: Annotated[str, typer.Argument(help="A file or folder that `average` has written.")],
    sources: Annotated[
        str | None, typer.Option(help="The folder that its sources are in now.")
    ] = None,
) -> None:
    """Make an average again from the sources that it names, and compare it bit for bit."""
    with progress_bar("verify") as progress:
        done = verify_average(out, sources=Path(sources) if sources else None, progress=progress)
    say(str(done))
    if done.differences:
        raise typer.Exit(1)
