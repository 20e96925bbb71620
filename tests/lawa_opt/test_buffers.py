"""Buffers beside the parameters: those that the model has now, or an error."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lawa_opt import LAWA
from tests.support.small_training import same


class Reassigning(nn.Module):
    """Puts a new tensor in the place of its buffer in each forward pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running = 0.5 * self.running + 0.5 * x.detach().mean(0)
        return x - self.running


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Reassigning(), nn.Linear(6, 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def train(model: nn.Module, opt: LAWA, steps: range | int) -> list[dict[str, Tensor]]:
    """Train, and return the whole model after each step."""
    history = []
    dtype = next(model.parameters()).dtype
    for step in range(steps) if isinstance(steps, int) else steps:
        generator = torch.Generator().manual_seed(step)
        opt.zero_grad()
        model(
            torch.randn(8, 4, generator=generator).to(dtype) * (step + 1)
        ).square().mean().backward()
        opt.step()
        history.append(copy.deepcopy(model.state_dict()))
    return history


def assert_is_mean(found: dict[str, Tensor], history: list[dict[str, Tensor]]) -> None:
    for name, value in found.items():
        snapshots = [state[name] for state in history]
        if value.is_floating_point():
            mean = torch.stack([snapshot.double() for snapshot in snapshots]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, snapshots[-1])


REPLACEMENTS = {
    "nothing": lambda model: model,
    "dtype": lambda model: model.double(),
    "dtype and back": lambda model: model.double().float(),
    "another tensor": lambda model: setattr(model[1], "running_mean", torch.ones(6)),
    "a module": lambda model: model.__setitem__(1, copy.deepcopy(model[1]).requires_grad_(False)),
    "loaded": lambda model: model.load_state_dict(
        {name: value.clone() for name, value in model.state_dict().items()}
    ),
}


@pytest.mark.parametrize("when", [0, 2, 5])
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_buffers_of_the_model_are_averaged_whatever_replaces_them(name: str, when: int) -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model)
    train(model, opt, when)
    REPLACEMENTS[name](model)
    history = train(model, opt, range(when, when + 4))[-3:]
    live = copy.deepcopy(model.state_dict())
    buffers = dict(model.named_buffers())
    with opt.averaged():
        assert_is_mean({n: dict(model.named_buffers())[n] for n in buffers}, history)
    assert same(live, copy.deepcopy(model.state_dict()))
    found = opt.averaged_state_dict(model)
    assert_is_mean({n: found[n] for n in buffers}, history)
    again = LAWA(sgd(model), k=3, every=1, buffers=model)
    again.load_state_dict(opt.state_dict())
    assert same(found, again.averaged_state_dict(model))


def test_snapshots_move_along_with_the_type() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=[model[1], model[2]])
    history = train(model, opt, 2)
    model.double()
    history += train(model, opt, range(2, 3))
    found = opt.averaged_state_dict(model)
    assert_is_mean(found, history)
    assert found["0.weight"].dtype == torch.float64
    fresh = train(model, opt, range(3, 6))
    with opt.averaged(), torch.no_grad():
        exact = torch.stack([state["0.weight"] for state in fresh]).mean(0)
        torch.testing.assert_close(model[0].weight, exact, rtol=1e-14, atol=1e-15)


def test_replaced_within_a_block_the_live_values_go_where_the_buffer_is_now() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model)
    train(model, opt, 4)
    live = copy.deepcopy(model.state_dict())
    with opt.averaged(), torch.no_grad():
        model(torch.randn(5, 4))  # in training mode, so that the statistics are written to
        model[1].running_mean = torch.zeros(6)
    assert same(live, copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("use", ["step", "averaged", "state dict", "load", "averaged_state_dict"])
def test_given_tensors_that_the_model_has_replaced_are_refused(use: str) -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model[1].buffers())
    train(model, opt, 2)
    state_dict = opt.state_dict()
    model.double()

    def enter() -> None:
        with opt.averaged():
            pass

    uses: dict[str, Any] = {
        "step": lambda: train(model, opt, 1),
        "averaged": enter,
        "state dict": opt.state_dict,
        "load": lambda: opt.load_state_dict(state_dict),
        "averaged_state_dict": lambda: opt.averaged_state_dict(model),
    }
    with pytest.raises(RuntimeError, match=r"torch.float64.*was torch.float32.*buffers=model"):
        uses[use]()


def test_given_tensors_of_the_same_type_are_refused_where_the_model_is_seen() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model[1].buffers())
    train(model, opt, 2)
    model.double().float()
    with pytest.raises(ValueError, match=r"1.running_mean.*other tensors.*buffers=model"):
        opt.averaged_state_dict(model)


def test_given_tensors_that_stay_are_averaged() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model[1].buffers())
    history = train(model, opt, 4)[-3:]
    with pytest.warns(UserWarning, match=r"2.running are live"):
        found = opt.averaged_state_dict(model)
    assert_is_mean({name: found[name] for name in found if name != "2.running"}, history)


def test_statistics_in_no_window_are_told_of_once() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1)
    train(model, opt, 4)
    message = r"1.running_mean, 1.running_var, 2.running are live.*buffers=model.*update_bn"
    with pytest.warns(UserWarning, match=message):
        opt.averaged_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.averaged_state_dict(model)


def test_of_constants_nothing_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    model.register_buffer("positions", torch.arange(9.0))
    opt = LAWA(sgd(model), k=2, every=1)
    train(model, opt, 60)
    opt.averaged_state_dict(model)


def test_what_is_no_buffer_is_refused() -> None:
    model = make_model()
    with pytest.raises(TypeError, match=r"buffers must be the model.*got str"):
        LAWA(sgd(model), buffers=["running_mean"])  # type: ignore[arg-type]


class Odd(nn.Module):
    """Buffers that are no statistics, of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("cache", torch.zeros(2, 1))
        self.register_buffer("mask", torch.ones(3, 3), persistent=False)
        self.register_buffer("expanded", torch.ones(1).expand(5))
        self.register_buffer("adjacency", torch.eye(3).to_sparse())
        self.register_buffer("scale", torch.ones(2).to(torch.float8_e4m3fn))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cache) < len(x):
            self.cache = torch.ones(len(x), 1)
        return self.layer(x) + self.cache[: len(x)]


def test_caches_grow_and_constants_of_any_kind_are_left_alone() -> None:
    model = Odd()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model)
    train(model, opt, 4)
    with opt.averaged():
        model(torch.zeros(64, 4))
    assert len(model.cache) == 64
    with opt.averaged():
        pass
    found = opt.averaged_state_dict(model)
    assert len(found["cache"]) == 64
    train(model, opt, 4)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.averaged_state_dict(model)


def test_frozen_statistics_are_not_told_of() -> None:
    model = make_model()[:2]
    model.append(nn.Linear(6, 1))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model.eval()
    opt = LAWA(sgd(model), k=2, every=1)
    train(model, opt, 40)
    opt.averaged_state_dict(model)


def test_statistics_computed_anew_inside_a_block_are_told_apart() -> None:
    model = make_model()
    batches = [torch.randn(8, 4) for _ in range(6)]
    opt = LAWA(sgd(model), k=3, every=1, buffers=model)
    train(model, opt, 4)
    message = r"statistics were computed anew.*model.state_dict\(\) has them"
    with opt.averaged():
        torch.optim.swa_utils.update_bn(batches, model)
        with pytest.warns(UserWarning, match=message):
            opt.averaged_state_dict(model)
    bare = LAWA(sgd(model), k=3, every=1)
    train(model, bare, 4)
    with bare.averaged():
        torch.optim.swa_utils.update_bn(batches, model)
        exact = copy.deepcopy(model.state_dict())
        assert same(exact["1.running_mean"], bare.averaged_state_dict(model)["1.running_mean"])


def test_a_group_of_another_type_added_later_is_no_move_of_the_model() -> None:
    model = make_model()
    opt = LAWA(sgd(model), k=3, every=1, buffers=model[1].buffers())
    train(model, opt, 2)
    opt.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]})
    train(model, opt, 2)


class HoldsItsOptimizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = make_model()
        self.opt = LAWA(sgd(self.layers), k=3, every=1, buffers=self)


def test_a_module_that_holds_its_optimizer_is_copied_while_averaged() -> None:
    module = HoldsItsOptimizer()
    train(module.layers, module.opt, 4)
    live = copy.deepcopy(module.state_dict())
    with module.opt.averaged():
        twin = copy.deepcopy(module)
        again = pickle.loads(pickle.dumps(module))
    for copied in (twin, again):
        copied.opt.train()
        assert same(live, copy.deepcopy(copied.state_dict()))
