"""`python -m lawa_opt leave`: a checkpoint for a training that goes on without LAWA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from lawa_opt.averaging_files.find import CheckpointError, fingerprint, reading
from lawa_opt.averaging_files.load import torch_load
from lawa_opt.averaging_files.write import atomic_write, refuse_existing, refuse_place
from lawa_opt.cli.console import say
from lawa_opt.leaving import leave as without_window


def leave(
    checkpoint: Annotated[Path, typer.Argument(help="A file of torch.save with a LAWA's window.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    overwrite: Annotated[bool, typer.Option(help="Write over a file that exists.")] = False,
) -> None:
    """Write a checkpoint without the window, as the wrapped optimizer alone would load it."""
    refuse_place(out, folder=False)
    identity = frozenset([fingerprint(checkpoint)[:2]])
    refuse_existing(out, [(checkpoint, identity)], overwrite)
    with reading(checkpoint):
        held = torch_load(checkpoint)
    try:
        left = without_window(held)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    with atomic_write(out) as temporary:
        torch.save(left, temporary)
    before, after = (path.stat().st_size for path in (checkpoint, out))
    say(f"{out}: {checkpoint} without the window, {after:,} of {before:,} bytes")
