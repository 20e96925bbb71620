"""`python -m lawa_opt average`: average checkpoint files."""

from __future__ import annotations

from typing import Annotated

import typer

from lawa_opt.averaging_files.average import average_checkpoints
from lawa_opt.cli.console import progress_bar, say
from lawa_opt.weights_by_step import NAMES


def average(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Safetensors and torch files, indexes of shards, folders of one checkpoint (also "
            "of torch.distributed.checkpoint), and folders of checkpoints.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="The file to write (.safetensors, .pt, .pth, .bin, .ckpt), or a folder, laid out "
            "as that of the newest."
        ),
    ],
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    from_step: Annotated[
        int | None, typer.Option("--from", min=0, help="None of before this step.")
    ] = None,
    to_step: Annotated[
        int | None, typer.Option("--to", min=0, help="None of after this step.")
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(min=1, help="Leave out what is fewer steps before the next one that counts."),
    ] = None,
    order: Annotated[
        str, typer.Option(help="number: by step; given: as given, oldest first.")
    ] = "number",
    key: Annotated[str, typer.Option(help="Where the state dict is, as state_dict.model.")] = "",
    strip_prefix: Annotated[
        list[str] | None, typer.Option(help="What names lose, as module.; may be given again.")
    ] = None,
    weights: Annotated[str, typer.Option(help=f"{NAMES}.")] = "uniform",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or float64; else their own.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="hf or dcp, for a folder that is not as the newest's."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at --out.")
    ] = False,
) -> None:
    """Average the weights of checkpoints into one."""
    with progress_bar("average") as progress:
        done = average_checkpoints(
            inputs,
            out,
            last=last,
            from_step=from_step,
            to_step=to_step,
            at_least=at_least,
            order=order,
            key=key,
            strip_prefix=strip_prefix or (),
            weights=weights,
            dtype=dtype,
            format=format_,
            overwrite=overwrite,
            progress=progress,
        )
    say(str(done), written=out)
