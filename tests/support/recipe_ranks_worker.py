"""Steps of recipes on each rank's part of a batch, under `torchrun`: give a FOLDER."""

import dataclasses
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from baselines.methods.names import find
from baselines.training import distributed
from baselines.workloads import digits, text
from baselines.workloads.data.corpus import Corpus

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

SIZE = text.Size(layers=4, width=8, heads=2, context=64)
FOUR = dataclasses.replace(
    text.workload(Corpus.split(bytes(range(256)) * 400, "bytes"), "bytes"),
    name="four",
    make_model=lambda: text.Transformer(SIZE).double(),
    num_blocks=SIZE.layers,
)


def batch_of(rank: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(rank)
    x = torch.randn(ROWS, 3, generator=draws, dtype=torch.float64)
    return x, torch.randint(4, (ROWS,), generator=draws)


# Before it grows, as it does, and after: by what is spent before each step.
SPENT = (0.0, 0.2, 0.2, 0.4, 0.4)


def stacked(network_of, batch_at) -> list[torch.Tensor]:
    """Return the weights after steps of layer stacking on a model that grows to four blocks."""
    torch.manual_seed(0)
    model = FOUR.make_model().train()
    recipe = find("layer-stacking").begin_recipe(model, FOUR, RATE)
    recipe.network = network_of(model)
    for step, spent in enumerate(SPENT):
        recipe.step(iter([batch_at(step)]), spent)
    assert recipe.depth == 4
    return [p.detach() for p in model.parameters()]


def words_of(step: int, rank: int) -> tuple[torch.Tensor, ...]:
    return next(FOUR.batches(RANKS * step + rank))


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
        found["stacked"] = stacked(
            lambda model: distributed.ddp(model, in_part=True), lambda step: words_of(step, rank)
        )
        torch.save(found, Path(sys.argv[1]) / f"rank-{rank}.pt")
