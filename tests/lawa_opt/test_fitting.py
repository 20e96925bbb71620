"""Weights learnt on held-out batches, beside the best ones found by going through all."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lawa_opt import LAWA
from tests.support.small_training import Replay, everything, same


def window_of(points: list[list[float]]) -> tuple[nn.Module, LAWA]:
    """A model of two numbers, whose snapshots are these points."""
    model = nn.Linear(2, 1, bias=False)
    weights = [[torch.tensor([point])] for point in points]
    opt = LAWA(Replay(list(model.parameters()), weights), k=len(points), every=1)
    for _ in points:
        opt.step()
    return model, opt


def distance_to(model: nn.Module, place: list[float]) -> Any:
    def loss(batch: Tensor) -> Tensor:
        return (model.weight - torch.tensor([place])).square().sum() * batch.mean()  # type: ignore[operator]

    return loss


BATCHES = [torch.ones(1) for _ in range(4)]


@pytest.mark.parametrize("place", [[0.2, 0.7], [1.0, 0.0], [0.4, 0.4], [3.0, 3.0], [0.1, 0.1]])
def test_they_are_those_of_the_nearest_average(place: list[float]) -> None:
    points = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    model, opt = window_of(points)
    loss = distance_to(model, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = opt.fit_weights(loss, BATCHES)
    shares = [i / 100 for i in range(101)]
    grid = [(1 - a - b, a, b) for a, b in itertools.product(shares, shares) if a + b <= 1]
    best = min((a - place[0]) ** 2 + (b - place[1]) ** 2 for _, a, b in grid)
    assert sum(found.weights) == pytest.approx(1)
    assert found.loss == pytest.approx(best, abs=0.02)
    with opt.averaged(weights=found):
        assert loss(BATCHES[0]).item() == pytest.approx(found.loss)
    with opt.averaged():
        assert loss(BATCHES[0]).item() == pytest.approx(found.uniform_loss)
    assert found.gain == found.uniform_loss - found.loss


def test_nothing_is_changed() -> None:
    model, opt = window_of([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    before, gradient = everything(model, opt), torch.ones(1, 2)
    model.weight.grad = gradient
    opt.fit_weights(distance_to(model, [0.1, 0.8]), BATCHES)
    assert same(before, everything(model, opt))
    assert model.weight.grad is gradient
    assert same(gradient, torch.ones(1, 2))


def test_only_what_is_trained_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).eval()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.3), k=4, every=1, buffers=model)
    data = [torch.randn(16, 2) for _ in range(6)]
    for batch in data[:4]:
        opt.zero_grad()
        model(batch).sub(batch.sum(1, keepdim=True)).square().mean().backward()
        opt.step()
    model[0].weight.requires_grad_(False)

    def loss(batch: Tensor) -> Tensor:
        return model(batch).sub(batch.sum(1, keepdim=True)).square().mean()  # type: ignore[no-any-return]

    found = opt.fit_weights(loss, data)
    assert found.gain > 0


def test_what_does_not_carry_over_to_other_batches_is_told() -> None:
    model, opt = window_of([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def loss(batch: Tensor) -> Tensor:
        return distance_to(model, batch.tolist())(torch.ones(1))  # type: ignore[no-any-return]

    apart = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])] * 2
    with pytest.warns(UserWarning, match="on 2 other batches the loss is .* with the uniform mean"):
        found = opt.fit_weights(loss, apart)
    assert found.gain < 0


def test_weights_of_other_snapshots_are_refused() -> None:
    model, opt = window_of([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = opt.fit_weights(distance_to(model, [0.1, 0.8]), BATCHES)
    assert found.steps == [1, 2, 3]
    opt.schedule.steps += 1
    opt.collect()
    before = everything(model, opt)
    with (
        pytest.raises(ValueError, match="of steps 1, 2, 3, and these are of 2, 3, 4: fit_weights"),
        opt.averaged(weights=found),
    ):
        pytest.fail("weights of other snapshots were taken")
    with pytest.raises(ValueError, match="fitted to the snapshots"):
        opt.averaged_state_dict(model, 2, weights=found)
    assert same(before, everything(model, opt))


def test_what_cannot_be_fitted_is_refused() -> None:
    model, opt = window_of([[0.0, 0.0], [1.0, 0.0]])
    loss = distance_to(model, [0.0, 0.0])
    with pytest.raises(ValueError, match=r"two batches are needed.*got 1"):
        opt.fit_weights(loss, BATCHES[:1])
    with pytest.raises(ValueError, match="is nan: nothing can be fitted"):
        opt.fit_weights(loss, [torch.full((1,), float("nan"))] * 2)
    opt.window.clear()
    with pytest.raises(RuntimeError, match="the window is empty"):
        opt.fit_weights(loss, BATCHES)


@pytest.mark.parametrize(
    ("wrong", "error", "cause"),
    [
        (lambda loss: loss.item(), TypeError, r"without \.item\(\): got float"),
        (lambda _: None, TypeError, "must return a tensor.*got NoneType"),
        (lambda loss: loss.expand(3), ValueError, r"one element: got shape \(3,\)"),
        (lambda loss: loss.detach(), ValueError, "has no gradient"),
        (lambda _: torch.ones((), requires_grad=True), ValueError, "none of the averaged weights"),
    ],
)
def test_another_result_than_a_loss_is_refused(wrong: Any, error: type, cause: str) -> None:
    model, opt = window_of([[0.0, 0.0], [1.0, 0.0]])
    before, loss = everything(model, opt), distance_to(model, [0.0, 0.0])
    with pytest.raises(error, match=cause):
        opt.fit_weights(lambda batch: wrong(loss(batch)), BATCHES)
    assert same(before, everything(model, opt))


def test_one_snapshot_alone_is_told() -> None:
    model, opt = window_of([[1.0, 0.0]])
    with pytest.warns(UserWarning, match="one snapshot, so there is nothing to weigh"):
        found = opt.fit_weights(distance_to(model, [0.0, 0.0]), BATCHES)
    assert found.weights == [1.0]
