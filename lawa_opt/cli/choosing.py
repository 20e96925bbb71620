"""The options that say which checkpoints are taken and how they are opened, of all commands."""

from __future__ import annotations

from typing import Annotated

import typer

Last = Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")]
FromStep = Annotated[int | None, typer.Option("--from", min=0, help="None of before this step.")]
ToStep = Annotated[int | None, typer.Option("--to", min=0, help="None of after this step.")]
AtLeast = Annotated[
    int | None,
    typer.Option(min=1, help="Only checkpoints so many steps apart, counted from the newest."),
]
Order = Annotated[str, typer.Option(help="number: by step; given: as given, oldest first.")]
Key = Annotated[str, typer.Option(help="Where the state dict is, as state_dict.model.")]
StripPrefix = Annotated[
    list[str] | None, typer.Option(help="What names lose, as module.; may be given again.")
]
