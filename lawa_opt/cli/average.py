"""`python -m lawa_opt average`: average checkpoint files."""

from __future__ import annotations

from typing import Annotated

import typer

from lawa_opt.averaging_files.average import average_checkpoints
from lawa_opt.cli.choosing import AtLeast, FromStep, Key, Last, Order, StripPrefix, ToStep
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
    last: Last = None,
    from_step: FromStep = None,
    to_step: ToStep = None,
    at_least: AtLeast = None,
    order: Order = "number",
    key: Key = "",
    strip_prefix: StripPrefix = None,
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
