"""Several optimizers in one LAWA: trained as apart, shown as one, averaged as a whole."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from lawa_opt import LAWA
from tests.support.small_training import (
    by_dimension,
    everything,
    loss_of,
    same,
    small_model,
    train,
    train_apart,
    weights_of,
)


def test_they_train_as_apart_and_the_whole_model_is_averaged() -> None:
    plain, model = small_model(), small_model()
    history = train_apart(plain, by_dimension(plain), 6)
    opt = LAWA(by_dimension(model), k=3, every=1)
    train(model, opt, 6)
    assert same(weights_of(plain), weights_of(model))
    mean = [torch.stack(each).double().mean(0).float() for each in zip(*history[-3:], strict=True)]
    with opt.averaged():
        torch.testing.assert_close(weights_of(model), mean, rtol=1e-6, atol=1e-7)
    assert same(weights_of(plain), weights_of(model))
    whole = opt.averaged_state_dict(model)
    torch.testing.assert_close(list(whole.values()), mean, rtol=1e-6, atol=1e-7)


def test_a_closure_is_called_once_a_step() -> None:
    plain, model = small_model(), small_model()
    train_apart(plain, by_dimension(plain), 3)
    opt = LAWA(by_dimension(model), k=3, every=1)
    train(model, opt, 3, closure=True)
    assert same(weights_of(plain), weights_of(model))
    assert opt.step(lambda: loss_of(model, 3)).item() > 0


def test_a_scheduler_and_a_scaler_see_one_optimizer() -> None:
    plain, model = small_model(), small_model()
    apart = by_dimension(plain)
    schedules = [lr_scheduler.ExponentialLR(each, 0.5) for each in apart]
    for _ in range(3):
        train_apart(plain, apart, 1)
        for schedule in schedules:
            schedule.step()
    opt = LAWA(by_dimension(model), k=3, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    schedule = lr_scheduler.ExponentialLR(opt, 0.5)
    for _ in range(3):
        opt.zero_grad()
        scaler.scale(loss_of(model, 0)).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        schedule.step()
    assert same(weights_of(plain), weights_of(model))
    rates = [group["lr"] for each in apart for group in each.param_groups]
    assert [group["lr"] for group in opt.param_groups] == rates
    assert schedule.get_last_lr() == rates


def test_global_hooks_are_called_once_a_step_with_the_lawa() -> None:
    model = small_model()
    opt = LAWA(by_dimension(model), k=3, every=1)
    seen: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        train(model, opt, 2)
    finally:
        handle.remove()
    assert [each is opt for each in seen] == [True, True]


@pytest.mark.parametrize("way", ["pickled", "in the same process", "torch.distributed.checkpoint"])
def test_a_resumed_training_goes_on_bit_for_bit(way: str) -> None:
    whole, first, second = small_model(), small_model(), small_model()
    reference = LAWA(by_dimension(whole), k=3, every=2)
    train(whole, reference, 8)
    opt, again = (LAWA(by_dimension(model), k=3, every=2) for model in (first, second))
    train(first, opt, 5)
    second.load_state_dict(first.state_dict())
    if way == "torch.distributed.checkpoint":
        saved = copy.deepcopy(get_optimizer_state_dict(first, opt))
        get_optimizer_state_dict(second, again)
        set_optimizer_state_dict(second, again, saved)
    else:
        saved = opt.state_dict()
        again.load_state_dict(pickle.loads(pickle.dumps(saved)) if way == "pickled" else saved)
    train(second, again, range(5, 8))
    assert same(everything(whole, reference), everything(second, again))


def test_checkpoints_of_the_two_apart_are_loaded() -> None:
    plain, model = small_model(), small_model()
    apart = by_dimension(plain)
    train_apart(plain, apart, 4)
    opt = LAWA(by_dimension(model), k=3, every=1)
    model.load_state_dict(plain.state_dict())
    opt.load_state_dict({"optimizers": [copy.deepcopy(each.state_dict()) for each in apart]})
    train_apart(plain, apart, 3)
    train(model, opt, 3)
    assert same(weights_of(plain), weights_of(model))
    with pytest.raises(ValueError, match="state of 1 optimizers, and there are 2"):
        opt.load_state_dict({"optimizers": [apart[0].state_dict()]})


class OwnForm(torch.optim.SGD):
    """Has a counter of its own in its state dict."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "calls": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = state_dict["calls"]
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})


def test_a_state_dict_of_its_own_form_is_kept_whole() -> None:
    def optimizers(model: nn.Module) -> list[Any]:
        first, last = model[0].parameters(), model[2].parameters()  # type: ignore[index]
        return [OwnForm(first, lr=0.1, momentum=0.9), torch.optim.AdamW(last, lr=0.01)]

    model, other = small_model(), small_model()
    opt, again = (LAWA(optimizers(each), k=3, every=1) for each in (model, other))
    train(model, opt, 4)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    assert again.base.optimizers[0].calls == 7  # type: ignore[attr-defined]
    train(model, opt, range(4, 6))
    train(other, again, range(4, 6))
    assert same(everything(model, opt), everything(other, again))


def test_a_refused_load_changes_none_of_them() -> None:
    model = small_model()
    opt = LAWA(by_dimension(model), k=3, every=1)
    train(model, opt, 4)

    def refuse(state_dict: Any) -> None:
        raise RuntimeError("not this one")

    opt.base.optimizers[1].load_state_dict = refuse  # type: ignore[attr-defined]
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    train(model, opt, range(4, 6))
    before = everything(model, opt)
    with pytest.raises(ValueError, match="not this one"):
        opt.load_state_dict(saved)
    assert same(before, everything(model, opt))


def test_copies_go_on_apart() -> None:
    model = small_model()
    opt = LAWA(by_dimension(model), k=3, every=1)
    train(model, opt, 4)
    twin, again = copy.deepcopy((model, opt))
    before = everything(model, opt)
    train(twin, again, range(4, 6))
    assert same(before, everything(model, opt))
    train(model, opt, range(4, 6))
    assert same(weights_of(model), weights_of(twin))


def test_state_is_that_of_each_parameters_optimizer() -> None:
    model = small_model()
    opt = LAWA(by_dimension(model), k=3, every=1)
    assert not opt.state
    train(model, opt, 2)
    muon, adam = opt.base.optimizers  # type: ignore[attr-defined]
    assert set(opt.state) == set(muon.state) | set(adam.state)
    weight, bias = model[0].weight, model[0].bias
    assert opt.state[weight] is muon.state[weight]
    opt.state[bias] = {"step": 3}
    assert adam.state[bias] == {"step": 3}
    assert type(adam.state) is defaultdict
    opt.restart_from_average(reset_state=True)
    assert not muon.state
    assert not adam.state


def test_each_is_told_of_eval_and_train() -> None:
    class Told(torch.optim.SGD):
        told: list[str]

        def eval(self) -> None:
            self.told.append("eval")

        def train(self) -> None:
            self.told.append("train")

    model = small_model()
    told = Told(model[0].parameters(), lr=0.1)
    told.told = []
    rest = torch.optim.SGD(model[2].parameters(), lr=0.1)
    opt = LAWA([told, rest], k=3, every=1)
    train(model, opt, 2)
    opt.eval()
    opt.train()
    assert told.told == ["eval", "train"]


def test_a_group_added_to_one_of_them_is_averaged_from_then_on() -> None:
    model, more = small_model(), nn.Linear(2, 2)
    opt = LAWA(by_dimension(model), k=3, every=1)
    train(model, opt, 2)
    with pytest.raises(TypeError, match=r"opt\.base\.optimizers\[1\]\.add_param_group"):
        opt.add_param_group({"params": list(more.parameters())})
    opt.base.optimizers[1].add_param_group({"params": list(more.parameters())})  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, 2)
        opt.averaged_state_dict(nn.ModuleList([model, more]))


def test_what_cannot_be_one_is_refused() -> None:
    model = small_model()
    muon, adam = by_dimension(model)
    with pytest.raises(ValueError, match="Muon and SGD have a parameter of shape"):
        LAWA([muon, torch.optim.SGD(model.parameters(), lr=0.1)])
    with pytest.raises(TypeError, match="this is a LAWA already"):
        LAWA([LAWA(muon), adam])
    with pytest.raises(TypeError, match="or a list of them: got str"):
        LAWA([muon, "adam"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        LAWA([])
    with pytest.raises(TypeError, match="LBFGS calls its closure"):
        LAWA([torch.optim.LBFGS(model[0].parameters()), adam])
    with pytest.raises(TypeError, match="Sam takes two steps an update"):
        LAWA([Sam(model[0].parameters()), adam])


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is usually written (2010.01412), with two steps."""

    def __init__(self, params: Any, rho: float = 0.05, lr: float = 0.1) -> None:
        super().__init__(params, {"rho": rho, "lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()  # type: ignore[union-attr]
        for p in self.parameters():
            self.state[p]["old"] = p.clone()
            p.add_(p.grad, alpha=0.05 / float(norm))  # type: ignore[arg-type]
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for p in self.parameters():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_the_second_of_two_steps_is_collected() -> None:
    def train_by_two_steps(model: nn.Module, opt: Any) -> list[list[Tensor]]:
        history = []
        for step in range(4):
            loss_of(model, step).backward()
            opt.first_step(zero_grad=True)
            loss_of(model, step).backward()
            opt.second_step(zero_grad=True)
            history.append(weights_of(model))
        return history

    plain, model = small_model(), small_model()
    history = train_by_two_steps(plain, Sam(plain.parameters()))
    opt = LAWA(Sam(model.parameters()), k=3, every=1)
    train_by_two_steps(model, opt)
    assert same(weights_of(plain), weights_of(model))
    assert opt.window.rings[0].newest_steps() == [2, 3, 4]
    mean = [torch.stack(each).double().mean(0).float() for each in zip(*history[-3:], strict=True)]
    with opt.averaged():
        torch.testing.assert_close(weights_of(model), mean, rtol=1e-6, atol=1e-7)
        with pytest.raises(RuntimeError, match=r"second_step\(\) while averaged weights"):
            opt.second_step()  # type: ignore[attr-defined]
    loss_of(model, 4).backward()
    opt.first_step(zero_grad=True)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"collect\(\) between first_step\(\) and second_step"):
        opt.collect()
    loss_of(model, 4).backward()
    opt.second_step(zero_grad=True)  # type: ignore[attr-defined]
    opt.collect()
    assert same(
        opt.window.rings[0].slots[opt.window.rings[0].newest_slots()[-1]], weights_of(model)
    )
    adam = LAWA(torch.optim.AdamW(model.parameters()))
    assert not hasattr(adam, "first_step")
    with pytest.raises(AttributeError, match="'LAWA' object has no attribute 'best_step'"):
        adam.best_step()  # type: ignore[attr-defined]
