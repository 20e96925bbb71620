"""A step of Lion and Sophia on each rank's part of a batch, under `torchrun`: give a FOLDER."""

import dataclasses
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from baselines.methods.names import find
from baselines.training import distributed
from baselines.workloads import digits

RATE, RANKS, ROWS = 0.01, 2, 6


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


WORKLOAD = dataclasses.replace(
    digits.load(),
    make_model=linear,
    loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    logits=lambda model, batch: model(batch[0]),
)


def batch_of(rank: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(rank)
    x = torch.randn(ROWS, 3, generator=draws, dtype=torch.float64)
    return x, torch.randint(4, (ROWS,), generator=draws)


if __name__ == "__main__":
    with distributed.process_group():
        rank, found = distributed.rank(), {}
        for name in ("lion", "sophia"):
            model = linear()
            recipe = find(name).begin_recipe(model, WORKLOAD, RATE)
            recipe.network = distributed.ddp(model)
            torch.manual_seed(rank)
            recipe.step(iter([batch_of(rank)]), 0.0)
            found[name] = [p.detach() for p in model.parameters()]
            if name == "sophia":
                found["h"] = [recipe.sophia.state[p]["h"] for p in model.parameters()]
        torch.save(found, Path(sys.argv[1]) / f"rank-{rank}.pt")
