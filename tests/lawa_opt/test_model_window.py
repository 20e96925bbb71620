"""A window of a model, without an optimizer of one's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lawa_opt import LAWA, ModelWindow
from tests.support.small_training import loss_of, same, small_model, train, weights_of


def train_in_backward(model: nn.Module, steps: range) -> None:
    """Steps each parameter when its gradient is there, as where no optimizer is to be had."""
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    handles = [p.register_post_accumulate_grad_hook(update) for p in model.parameters()]
    for step in steps:
        loss_of(model, step).backward()
    for handle in handles:
        handle.remove()


def test_it_is_the_window_of_a_lawa_over_the_optimizer() -> None:
    plain, model = small_model(), small_model()
    opt = LAWA(torch.optim.SGD(plain.parameters(), lr=0.1), k=3, every=2)
    window = ModelWindow(model, k=3)
    for step in range(9):
        train(plain, opt, range(step, step + 1))
        train_in_backward(model, range(step, step + 1))
        if (step + 1) % 2 == 0:
            window.collect(step + 1)
    live = weights_of(model)
    assert same(weights_of(plain), live)
    for weights in ("uniform", "1-sqrt"):
        with opt.averaged(weights=weights), window.averaged(weights=weights):
            assert same(weights_of(plain), weights_of(model))
            assert not same(weights_of(model), live)
    assert same(weights_of(model), live)
    assert window.window.rings[0].newest_steps() == [4, 6, 8]


def test_it_is_saved_and_loaded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    window = ModelWindow(model, k=2)
    for step in (10, 20, 30):
        train_in_backward(model, range(step, step + 1))
        window.collect(step)
    twin = copy.deepcopy(model)
    again = ModelWindow(twin, k=2)
    again.load_state_dict(pickle.loads(pickle.dumps(window.state_dict())))
    assert same(window.averaged_state_dict(model), again.averaged_state_dict(twin))
    again.collect(40)
    assert again.window.rings[0].newest_steps() == [30, 40]


def test_frozen_parameters_are_not_held() -> None:
    model = small_model()
    model[0].requires_grad_(False)  # type: ignore[index]
    window = ModelWindow(model, k=2)
    window.collect(1)
    assert len(window.param_groups[0]["params"]) == 2
    window.averaged_state_dict(model)


def test_snapshots_are_numbered_where_no_step_is_given() -> None:
    model = small_model()
    window = ModelWindow(model, k=2)
    with pytest.raises(RuntimeError, match=r"nothing has called collect\(\)"):
        window.averaged_state_dict(model)
    for numbers in ([1], [1, 2], [2, 3]):
        window.collect()
        assert window.window.rings[0].newest_steps() == numbers


@pytest.mark.parametrize("steps", [[100], [100, 200], [1, 2, 9]])
def test_a_number_does_not_follow_a_step(steps: list[int]) -> None:
    model = small_model()
    window = ModelWindow(model, k=2)
    for step in steps:
        window.collect(step)
    with pytest.raises(ValueError, match=rf"is of step {steps[-1]}: give this one's step"):
        window.collect()
    assert window.window.rings[0].newest_steps() == steps[-2:]


def test_what_it_is_not_for_is_refused() -> None:
    model = small_model()
    window = ModelWindow(model, k=2)
    with pytest.raises(RuntimeError, match=r"trains nothing: .* call collect\(step\)"):
        window.step()
    window.collect(5)
    wrong: Any
    for wrong in (4, 0, -1, True, 5.0):
        with pytest.raises(ValueError, match="number of a step from 5 on"):
            window.collect(wrong)
    with window.averaged(), pytest.raises(RuntimeError, match="averaged weights are in the model"):
        window.collect(6)
    assert window.schedule.steps == 5
    wrong = torch.optim.SGD(model.parameters())
    with pytest.raises(TypeError, match="takes the model: got SGD; wrap an optimizer in LAWA"):
        ModelWindow(wrong)
    with pytest.raises(ValueError, match="no parameter of this model requires gradients"):
        ModelWindow(model.requires_grad_(False))
