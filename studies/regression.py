"""A regression that is no language and has no end of data: a function drawn once, with noise.

16 measurements, the sum of 32 ridges of a sine, and noise on the training targets alone, so that
the validation and test parts, 4,096 examples each, have little noise of their own.
"""

import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.base import Batch, Workload, evaluating, generator

BATCH, INPUTS, RIDGES, WIDTH, NOISE, HELD_OUT = 64, 16, 32, 96, 0.3, 4096


def make_model() -> nn.Module:
    """Three layers with LayerNorm: (batch, INPUTS) to (batch, 1)."""
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH),
        nn.GELU(),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, WIDTH),
        nn.GELU(),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 1),
    )


def load() -> Workload:
    """The workload."""
    drawn = generator(29)
    directions = torch.randn(INPUTS, RIDGES, generator=drawn) / INPUTS**0.5
    heights = torch.randn(RIDGES, generator=drawn) * (2 / RIDGES) ** 0.5

    def function(x: Tensor) -> Tensor:
        found: Tensor = torch.sin(2 * x @ directions) @ heights
        return found

    inputs = torch.randn(2, HELD_OUT, INPUTS, generator=drawn)
    validation, test = ((x, function(x)) for x in inputs)

    def batches(seed: int, start: int = 0) -> Iterator[Batch]:
        for index in itertools.count(start):
            own = generator(seed, index)
            x = torch.randn(BATCH, INPUTS, generator=own)
            yield x, function(x) + NOISE * torch.randn(BATCH, generator=own)

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        off: Tensor = model(batch[0]).squeeze(1) - batch[1]
        return off.square()

    def evaluate(model: nn.Module, part: Batch) -> float:
        with evaluating(model):
            return float(F.mse_loss(model(part[0]).squeeze(1), part[1]))

    digest = hashlib.sha256(inputs.numpy().tobytes() + validation[1].numpy().tobytes())
    return Workload(
        name="regression",
        metric="mean squared error",
        make_model=make_model,
        make_optimizer=lambda model, rate: torch.optim.AdamW(
            model.parameters(), lr=rate, fused=True
        ),
        learning_rate=1e-2,
        batches=batches,
        loss=lambda model, batch: losses(model, batch).mean(),
        losses=losses,
        evaluate=lambda model: evaluate(model, validation),
        evaluate_test=lambda model: evaluate(model, test),
        budget_seconds=5.0,
        signature={
            "model": f"mlp-3x{WIDTH}",
            "batch": BATCH,
            "evaluation_examples": HELD_OUT,
            "dtype": "float32",
            "optimizer": "AdamW",
        },
        data={
            "source": f"{RIDGES} ridges of a sine, drawn by PyTorch",
            "examples": HELD_OUT,
            "sha256": digest.hexdigest(),
        },
    )
