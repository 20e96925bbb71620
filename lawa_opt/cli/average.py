"""`python -m lawa_opt average`: average checkpoint files."""

from __future__ import annotations

from typing import Annotated

import typer

from lawa_opt.averaging_files.average import average_checkpoints
from lawa_opt.cli.console import progress_bar, say
from lawa_opt.weights_by_step import NAMES


def average(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT...",
            help="Safetensors and torch files, indexes of shards, folders with one of these.",
        ),
    ],
    out: Annotated[str, typer.Option(help="The file to write: .safetensors, .pt, .pth, .bin.")],
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    order: Annotated[
        str, typer.Option(help="number: by the numbers in the names; given: oldest first.")
    ] = "number",
    key: Annotated[str, typer.Option(help="Where the state dict is, as state_dict.model.")] = "",
    weights: Annotated[str, typer.Option(help=f"{NAMES}.")] = "uniform",
) -> None:
    """Average the weights in checkpoint files into one file."""
    with progress_bar("average") as progress:
        done = average_checkpoints(
            checkpoints,
            out,
            last=last,
            order=order,
            key=key,
            weights=weights,
            progress=progress,
        )
    say(str(done), written=out)
