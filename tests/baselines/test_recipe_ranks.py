"""Recipes over two ranks: as one process with batches as large."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from baselines.methods.names import find
from tests.support.recipe_ranks_worker import (
    RANKS,
    RATE,
    ROWS,
    SPENT,
    WORKLOAD,
    batch_of,
    linear,
    stacked,
    words_of,
)
from tests.support.torchrun import ROOT, torchrun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo"),
]


def test_two_ranks_are_one_process_with_a_larger_batch(tmp_path: Path) -> None:
    worker = ROOT / "tests" / "support" / "recipe_ranks_worker.py"
    done = torchrun(worker, tmp_path, ranks=RANKS)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(RANKS))
    whole = tuple(torch.cat(parts) for parts in zip(*map(batch_of, range(RANKS)), strict=True))

    model = linear()
    find("lion").begin_recipe(model, WORKLOAD, RATE).step(iter([whole]), 0.0)
    expected = {"lion": [p.detach() for p in model.parameters()]}
    # The labels that each rank draws, by its own seed, from the logits before the step.
    drawn = []
    for rank in range(RANKS):
        torch.manual_seed(rank)
        waits = torch.empty(ROWS, 4, dtype=torch.float32).exponential_()
        drawn.append((linear()(batch_of(rank)[0]) - waits.log()).argmax(1))
    model = linear()
    loss = F.cross_entropy(model(whole[0]), torch.cat(drawn))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected["h"] = [0.01 * RANKS * ROWS * g * g for g in gradients]
    both = [
        tuple(map(torch.cat, zip(*(words_of(step, rank) for rank in range(RANKS)), strict=True)))
        for step in range(len(SPENT))
    ]
    expected["stacked"] = stacked(lambda model: model, both.__getitem__)
    for found in (first, second):
        for name, tensors in expected.items():
            for mine, naive in zip(found[name], tensors, strict=True):
                torch.testing.assert_close(mine, naive, rtol=1e-9, atol=1e-12)
    for mine, other in zip(first["sophia"], second["sophia"], strict=True):
        assert torch.equal(mine, other)
