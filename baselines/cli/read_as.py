"""The option that says how weights are read, and what it does to a workload's model."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from baselines.experiment.plan import Plan
from baselines.training.rounding import parse_readings, what_is_rounded

ReadOption = Annotated[
    str,
    typer.Option(
        metavar="READING[,...]",
        help="How the weights are read at each evaluation: float, and with it copies rounded to "
        "the nearest, such as int8,int4,int3 with a scale a row, int4g32 with one for each 32 "
        "values of a row, int4-body without embeddings and head, or torchao:int4. Off the clock "
        "and charged to no run.",
    ),
]


def parsed(text: str) -> tuple[str, ...]:
    """Return the readings of --read, float first, or a usage error."""
    try:
        return parse_readings(text)
    except ValueError as error:
        raise typer.BadParameter(f"--read: {error}") from error


def try_reading(plan: Plan) -> list[str]:
    """Return what each rounding does to the workload's model, a line each.

    A model that cannot be rounded so is a usage error. Without roundings no model is made.
    """
    if not plan.roundings:
        return []
    with torch.random.fork_rng(devices=[]):
        model = plan.workload.make_model()
    try:
        return [f"Read as {what_is_rounded(model, each)}." for each in plan.roundings]
    except ValueError as error:
        raise typer.BadParameter(f"--read: {error}") from error
