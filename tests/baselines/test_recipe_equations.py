"""Recipes against the equations that their papers give, by slow and obvious twins in float64."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines.methods.names import find
from baselines.methods.recipes.layer_dropping import LayerDroppingPart
from baselines.methods.recipes.rho_loss import RhoLossPart
from baselines.methods.recipes.scoring import score
from baselines.methods.recipes.selective_backprop import SelectiveBackpropPart
from baselines.workloads import digits, text
from baselines.workloads.data.corpus import Corpus

DIGITS = digits.load()
WORDS = text.workload(Corpus.split(bytes(range(256)) * 400, "bytes"), "bytes")
RATE, DECAY, STEPS = 0.01, 0.1, 23


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


def batch_of(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(step)
    x = torch.randn(size, 3, generator=draws, dtype=torch.float64)
    return x, torch.randint(4, (size,), generator=draws)


SMALL = dataclasses.replace(
    DIGITS,
    make_model=linear,
    make_optimizer=lambda model, rate: torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=DECAY
    ),
    loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    logits=lambda model, batch: model(batch[0]),
)


def gradient(w: torch.Tensor, b: torch.Tensor, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean cross-entropy of a linear model, by hand."""
    x, targets = batch
    p = (x @ w.T + b).softmax(1) - F.one_hot(targets, 4)
    return p.T @ x / len(x), p.mean(0)


def test_lion_is_its_equation() -> None:
    model = linear()
    recipe = find("lion(rate=0.5)").begin_recipe(model, SMALL, RATE)
    w = [p.detach().clone() for p in model.parameters()]
    m = [torch.zeros_like(p) for p in w]
    for step in range(STEPS):
        for i, g in enumerate(gradient(*w, batch_of(step))):
            c = 0.9 * m[i] + 0.1 * g
            w[i] = w[i] - RATE * (c.sign() + DECAY / 0.5 * w[i])
            m[i] = 0.99 * m[i] + 0.01 * g
        taken = recipe.step(iter([batch_of(step)]), 0.0)
        assert taken.operations == ("load_data", "lion_step")
    for own, naive in zip(model.parameters(), w, strict=True):
        torch.testing.assert_close(own.detach(), naive, rtol=1e-12, atol=1e-12)


def test_sophia_is_its_equation() -> None:
    model = linear()
    recipe = find("sophia(every=4,rho=0.02)").begin_recipe(model, SMALL, RATE)
    w = [p.detach().clone() for p in model.parameters()]
    m, h = ([torch.zeros_like(p) for p in w] for _ in range(2))
    unclipped = 0
    for step in range(STEPS):
        batch = batch_of(step)
        if step % 4 == 0:
            # The labels that it draws: logits plus Gumbel noise, from the same generator.
            torch.manual_seed(step)
            waits = torch.empty(8, 4, dtype=torch.float32).exponential_()
            logits = batch[0] @ w[0].T + w[1]
            drawn = (logits - waits.log()).argmax(1)
            for i, g in enumerate(gradient(*w, (batch[0], drawn))):
                h[i] = 0.99 * h[i] + 0.01 * 8 * g * g
        for i, g in enumerate(gradient(*w, batch)):
            m[i] = 0.965 * m[i] + 0.035 * g
            ratio = (m[i].abs() / (0.02 * h[i] + 1e-15)).clamp(max=1)
            unclipped += int((ratio < 1).sum())
            w[i] = w[i] - RATE * (m[i].sign() * ratio + DECAY * w[i])
        torch.manual_seed(step)
        taken = recipe.step(iter([batch]), 0.0)
        assert ("hessian" in taken.operations) == (step % 4 == 0)
        if step == 11:
            # So that both branches of the clip are tried.
            for i, state in enumerate(recipe.sophia.state.values()):
                state["h"] *= 1000
                h[i] = h[i] * 1000
    assert 0 < unclipped < STEPS * 16
    for own, naive in zip(model.parameters(), w, strict=True):
        torch.testing.assert_close(own.detach(), naive, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_sophias_estimate_is_unbiased_where_the_hessian_is_known() -> None:
    """For a linear model the Gauss-Newton matrix is the Hessian: diagonal E[p (1 - p) x²]."""
    model = linear()
    recipe = find("sophia(beta2=0.5)").begin_recipe(model, SMALL, RATE)
    batch = batch_of(0, 6)
    p = model(batch[0]).detach().softmax(1)
    known = (p * (1 - p)).T @ batch[0] ** 2 / 6, (p * (1 - p)).mean(0)
    full = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(batch[0] @ w.T + model.bias.detach(), batch[1]),
        model.weight.detach(),
    )
    torch.testing.assert_close(full.reshape(12, 12).diagonal().view(4, 3), known[0])
    sums = [torch.zeros_like(each) for each in known]
    squares = [torch.zeros_like(each) for each in known]
    draws = 1000
    torch.manual_seed(0)
    for _ in range(draws):
        for state in recipe.sophia.state.values():
            state["h"].zero_()
        recipe.estimate(batch)
        for i, parameter in enumerate(model.parameters()):
            # From h = 0, half of the estimate is taken.
            estimate = 2 * recipe.sophia.state[parameter]["h"]
            sums[i] += estimate
            squares[i] += estimate**2
    for total, square, diagonal in zip(sums, squares, known, strict=True):
        mean = total / draws
        error = ((square / draws - mean**2) / draws).sqrt()
        assert ((mean - diagonal).abs() < 5 * error).all()
        # Tight enough to see a factor that is not there.
        assert (5 * error < 0.5 * diagonal).all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_selective_backprop_keeps_one_in_beta_plus_one_of_stationary_losses(beta: float) -> None:
    part = SelectiveBackpropPart(beta=beta, history=1000)
    recipe = part.begin(DIGITS.make_model(), DIGITS, RATE)
    torch.manual_seed(0)
    kept = [recipe.is_kept(torch.randn(50).exp()).double().mean() for _ in range(600)]
    # 30,000 draws: a standard error below 0.003.
    assert float(torch.stack(kept).mean()) == pytest.approx(1 / (beta + 1), abs=0.012)
    assert len(recipe.losses) == 1000


def test_selective_backprop_keeps_by_the_percentile_among_the_latest() -> None:
    recipe = SelectiveBackpropPart(beta=2, history=7).begin(DIGITS.make_model(), DIGITS, RATE)
    latest: list[float] = []
    draws = torch.Generator().manual_seed(1)
    for step in range(20):
        losses = torch.randint(6, (4,), generator=draws).float()
        latest = [*latest, *losses.tolist()][-7:]
        percentiles = [
            (sum(o < x for o in latest) + sum(o <= x for o in latest)) / (2 * len(latest))
            for x in losses.tolist()
        ]
        torch.manual_seed(step)
        found = recipe.is_kept(losses)
        torch.manual_seed(step)
        drawn = torch.rand(4).tolist()
        assert found.tolist() == [d < c**2 for d, c in zip(drawn, percentiles, strict=True)]


def test_selective_backprop_trains_on_what_it_kept_in_the_order_it_was_kept() -> None:
    model = DIGITS.make_model().train()
    recipe = SelectiveBackpropPart().begin(model, DIGITS, RATE)
    trained: list[int] = []
    recipe.workload = dataclasses.replace(
        DIGITS, loss=lambda m, batch: (trained.extend(batch[2].tolist()), DIGITS.loss(m, batch))[1]
    )
    before = [b.clone() for b in model.buffers()]
    kept, updates, batches = [], 0, DIGITS.batches(0)
    for step in range(9):
        batch = next(batches)
        losses = score(DIGITS, model, batch)
        twin = SelectiveBackpropPart().begin(model, DIGITS, RATE)
        twin.losses = recipe.losses
        torch.manual_seed(step)
        kept += batch[2][twin.is_kept(losses)].tolist()
        if not updates:
            # Scoring is no training: BatchNorm's statistics are as they were.
            assert all(map(torch.equal, before, model.buffers()))
        torch.manual_seed(step)
        taken = recipe.step(iter([batch]), 0.0)
        updates += taken.updated
        assert taken.updated == ("train_step" in taken.operations)
    assert trained == kept[: 64 * updates]
    assert updates >= 3
    assert recipe.kept[2].tolist() == kept[64 * updates :]


def test_dropping_keeps_the_expectation_of_what_a_block_puts_out() -> None:
    part = LayerDroppingPart(keep=0.4)
    torch.manual_seed(0)
    model = WORDS.make_model().train()
    recipe = part.begin(model, WORDS, RATE)
    block = recipe.blocks[1]
    seen = []

    def loss(network, batch):
        seen.append(block(x).detach())
        return WORDS.loss(network, batch)

    recipe.workload = dataclasses.replace(WORDS, loss=loss)
    x = torch.randn(2, 5, text.SIZE.width)
    whole = block(x).detach()
    (_, share), batch = part.shares(1.0, 2), next(WORDS.batches(0))
    assert share == pytest.approx(0.4)
    weights = [p.detach().clone() for p in model.parameters()]
    for is_kept in (True, False):
        recipe.train(batch, [True, is_kept], part.shares(1.0, 2))
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight)
    kept, dropped = seen
    assert torch.equal(dropped, x)
    torch.testing.assert_close(share * kept + (1 - share) * dropped, whole, rtol=1e-5, atol=1e-5)
    # After a step nothing is left of it.
    assert torch.equal(block(x), whole)


def test_dropped_blocks_stand_still_and_the_others_are_drawn_as_often_as_said() -> None:
    part = LayerDroppingPart(keep=0.5, gamma=3.0)
    torch.manual_seed(0)
    model = WORDS.make_model().train()
    recipe = part.begin(model, WORDS, RATE)
    batch = next(WORDS.batches(0))
    for _ in range(2):
        # Once with a momentum, which would move a block whose gradients are zeros.
        recipe.train(batch, [True, True], [1.0, 1.0])
    first, second = ([p.detach().clone() for p in block.parameters()] for block in recipe.blocks)
    recipe.train(batch, [False, True], [0.75, 0.5])
    assert all(map(torch.equal, first, recipe.blocks[0].parameters()))
    assert not any(map(torch.equal, second, recipe.blocks[1].parameters()))
    assert part.shares(0.0, 4) == [1.0] * 4
    theta = 0.5 + 0.5 * 2.718281828459045 ** (-3.0 * 0.2)
    assert part.shares(0.2, 4) == pytest.approx([1 - (1 - theta) * i / 4 for i in (1, 2, 3, 4)])
    trained: list[list[bool]] = []
    recipe.train = lambda batch, is_kept, shares: trained.append(is_kept) or torch.zeros(())
    names = [recipe.step(iter([batch]), 1.0).operations[1] for _ in range(2000)]
    counts = [f"train_step_{sum(is_kept)}_of_2" for is_kept in trained]
    assert names == counts
    shares = torch.tensor(trained).double().mean(0)
    torch.testing.assert_close(
        shares, torch.tensor(part.shares(1.0, 2)).double(), atol=0.05, rtol=0
    )


@pytest.mark.slow
def test_rho_trains_on_the_examples_that_a_loop_picks() -> None:
    torch.manual_seed(0)
    model = DIGITS.make_model().train()
    trained: list[tuple[torch.Tensor, ...]] = []

    def loss(network, batch):
        trained.append(batch)
        return DIGITS.loss(network, batch)

    workload = dataclasses.replace(DIGITS, loss=loss)
    recipe = RhoLossPart(batches=3, epochs=2).begin(model, workload, RATE)
    batches = DIGITS.batches(0)
    ran: list[str] = []
    while "train_step" not in ran:
        losses = {}
        if "irreducible_score" in ran:
            with torch.no_grad():
                images, labels, ids = DIGITS.examples.get(torch.arange(DIGITS.examples.count))
                for network in (model, recipe.irreducible.model):
                    network.eval()
                    losses[network] = F.cross_entropy(network(images), labels, reduction="none")
                    network.train()
        taken = recipe.step(batches, 0.0)
        ran += taken.operations
        assert taken.updated == ("train_step" in taken.operations)
    held_out = set(recipe.irreducible.held_out.tolist())
    assert len(held_out) == 288
    # Two epochs of 288 examples in batches of 64, and one pass through the 1,151 others.
    assert ran[:9] == ["irreducible_step"] * 9
    assert ran[9:27] == ["irreducible_score"] * 18
    assert ran[27:] == ["load_data", "score_by_id"] * 3 + ["train_step"]
    assert all(set(batch[2].tolist()) <= held_out for batch in trained[:9])
    candidates, stream = [], DIGITS.batches(0)
    for _ in range(3):
        for image, label, number in zip(*next(stream), strict=True):
            if int(number) not in held_out:
                reducible = losses[model][number] - losses[recipe.irreducible.model][number]
                candidates.append((-float(reducible), int(number), image, label))
    naive = sorted(candidates, key=lambda each: each[0])[:64]
    images, labels, ids = trained[-1]
    assert sorted(ids.tolist()) == sorted(number for _, number, _, _ in naive)
    # The images as they were drawn, moved by a pixel, and not as they were scored.
    by_id = {number: (image, label) for _, number, image, label in naive}
    for image, label, number in zip(images, labels, ids.tolist(), strict=True):
        assert torch.equal(image, by_id[number][0])
        assert torch.equal(label, by_id[number][1])
