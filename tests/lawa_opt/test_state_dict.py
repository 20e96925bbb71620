"""Saving, loading, adopting LAWA in mid-training, and refusing what does not fit."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import (
    DENSE,
    NEEDS_CLOSURE,
    everything,
    make,
    same,
    small_model,
    train,
    weights_of,
)


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("every", [3, "auto"])
def test_resuming_goes_on_as_if_never_stopped(kind: Any, every: Any) -> None:
    model, resumed = small_model(), small_model(seed=1)
    closure = kind in NEEDS_CLOSURE
    opt = LAWA(make(kind, model), k=3, every=every, horizon=0.5)
    train(model, opt, 10, closure=closure)
    weights, state_dict = through_a_file((model.state_dict(), opt.state_dict()))
    resumed.load_state_dict(weights)
    again = LAWA(make(kind, resumed), k=3, every=every, horizon=0.5)
    again.load_state_dict(state_dict)
    assert same(opt.averaged_state_dict(model), again.averaged_state_dict(resumed))
    for _ in range(3):
        steps = range(opt.schedule.steps, opt.schedule.steps + 2)
        train(model, opt, steps, closure=closure)
        train(resumed, again, steps, closure=closure)
        assert same(model.state_dict(), resumed.state_dict())
        assert vars(opt.schedule) == vars(again.schedule)
        assert opt.num_snapshots == again.num_snapshots
        assert same(opt.averaged_state_dict(model), again.averaged_state_dict(resumed))


def test_the_interval_goes_on_where_nothing_was_collected_yet() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01), every=10)
    train(model, opt, 7)
    again = LAWA(torch.optim.SGD(model.parameters(), lr=0.01), every=10)
    again.load_state_dict(through_a_file(opt.state_dict()))
    train(model, again, 3)
    assert (again.num_snapshots, again.schedule.steps, again.schedule.last_collect) == (1, 10, 10)


@pytest.mark.parametrize("enabled", [True, False])
def test_switched_off_in_mid_training_it_comes_back_so(enabled: bool) -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=2, every=1, buffers=[torch.zeros(1)])
    train(model, opt, 3)
    opt.enabled = enabled
    train(model, opt, 1)
    again = LAWA(adamw(small_model()), k=2, every=3, start=2, buffers=[torch.zeros(1)])
    again.enabled = not enabled
    again.load_state_dict(through_a_file(opt.state_dict()))
    assert again.enabled is enabled
    assert (again.schedule.every, again.schedule.start) == (3, 2), "settings are not in it"
    newest = again.schedule.last_collect
    train(model, again, range(4, 8))
    assert again.schedule.last_collect == (6 if enabled else newest)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_state_dict_that_does_not_say_leaves_it_switched_as_it_is(enabled: bool) -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=2, every=1)
    train(model, opt, 3)
    opt.enabled = not enabled
    unsaid = opt.state_dict()
    for entry in unsaid["state"].values():
        del entry["lawa_enabled"]
    for state_dict in (unsaid, opt.base.state_dict()):
        again = LAWA(adamw(small_model()), k=2, every=1)
        again.enabled = enabled
        again.load_state_dict(through_a_file(state_dict))
        assert again.enabled is enabled
    assert again.num_snapshots == 0


def test_a_fresh_lawa_saves_what_its_optimizer_would() -> None:
    model = small_model()
    opt = LAWA(adamw(model))
    assert same(opt.state_dict(), opt.base.state_dict())


def test_groups_with_different_windows_come_back_as_they_were() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model[0].parameters(), lr=0.1), k=3, every=1)
    train(model, opt, 3)
    opt.add_param_group({"params": list(model[2].parameters())})
    train(model, opt, 1)
    twin = copy.deepcopy(model)
    groups = [{"params": model_part.parameters()} for model_part in (twin[0], twin[2])]
    again = LAWA(torch.optim.SGD(groups, lr=0.1), k=3, every=1)
    again.load_state_dict(through_a_file(opt.state_dict()))
    for step in range(4, 7):
        assert same(opt.averaged_state_dict(model), again.averaged_state_dict(twin))
        for latest in (1, 2, 3):
            one = opt.averaged_state_dict(model, latest)
            assert same(one, again.averaged_state_dict(twin, latest))
        train(model, opt, range(step, step + 1))
        train(twin, again, range(step, step + 1))


def test_buffers_are_saved() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every=1, buffers=model)
    train(model, opt, 3)
    twin = copy.deepcopy(model)
    again = LAWA(torch.optim.SGD(twin.parameters(), lr=0.1), k=2, every=1, buffers=twin)
    again.load_state_dict(through_a_file(opt.state_dict()))
    assert same(opt.averaged_state_dict(model), again.averaged_state_dict(twin))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_another_k_keeps_the_newest_snapshots_that_fit(k: int, steps: int) -> None:
    model = small_model()
    history = []
    opt = LAWA(adamw(model), k=4, every=1)
    for step in range(steps):
        train(model, opt, range(step, step + 1))
        history.append(weights_of(model))
    twin = copy.deepcopy(model)
    again = LAWA(adamw(twin), k=k, every=1)
    saved = through_a_file(opt.state_dict())
    held = min(k, 4, steps)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again.load_state_dict(saved)
    kept = "all" if held == min(4, steps) else f"the {held} newest of"
    texts = [str(each.message) for each in said]
    expected = f"is of k=4 and this LAWA of k={k}: {kept} {min(4, steps)} snapshots stay"
    assert len(texts) == (k != 4)
    assert all(expected in text for text in texts)
    assert again.num_snapshots == held
    assert again.window.rings[0].newest_steps() == list(range(steps + 1 - held, steps + 1))
    for step in range(steps, steps + 3):
        train(model, opt, range(step, step + 1))
        train(twin, again, range(step, step + 1))
        history.append(weights_of(model))
        assert same(weights_of(model), weights_of(twin))
        held = min(held + 1, k)
        mean = [torch.stack(each).double().mean(0) for each in zip(*history[-held:], strict=True)]
        with again.averaged():
            torch.testing.assert_close(
                [each.double() for each in weights_of(twin)], mean, rtol=1e-6, atol=1e-7
            )


@pytest.mark.parametrize("given", ["no buffers", "fewer buffers"])
def test_snapshots_of_other_buffers_are_left_out_and_said_to_be(given: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every=1, buffers=model)
    train(model, opt, 3)
    twin = copy.deepcopy(model)
    buffers = () if given == "no buffers" else [twin[1]]
    again = LAWA(torch.optim.SGD(twin.parameters(), lr=0.1), k=2, every=1, buffers=buffers)
    saved = through_a_file(opt.state_dict())
    with pytest.warns(UserWarning, match="snapshots of 6 buffers and this LAWA has .*left out"):
        again.load_state_dict(saved)
    assert again.num_snapshots == 2
    with opt.averaged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the buffers that have no snapshot
        with again.averaged():
            assert same(weights_of(model), weights_of(twin))


def test_loading_copies_into_the_dtype_of_the_window() -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=2, every=1)
    train(model, opt, 2)
    state_dict = opt.state_dict()
    again = LAWA(adamw(model), k=2, every=1, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"in torch.float32 are rounded to this .*torch.bfloat16"):
        again.load_state_dict(state_dict)
    for index, theirs in state_dict["state"].items():
        mine = again.state_dict()["state"][index]
        for name in ("lawa_0", "lawa_1"):
            assert mine[name].dtype == torch.bfloat16
            assert torch.equal(mine[name], theirs[name].bfloat16())
    train(model, again, range(2, 4))
    assert same(state_dict, opt.state_dict())


def test_a_checkpoint_of_the_plain_optimizer_is_adopted_in_mid_training() -> None:
    plain, adopted = small_model(), small_model()
    alone = adamw(plain)
    train(plain, alone, 4)
    adopted.load_state_dict(plain.state_dict())
    opt = LAWA(adamw(adopted), k=3, every=2)
    opt.collect()  # belongs to other weights, so that loading must forget it
    opt.load_state_dict(through_a_file(alone.state_dict()))
    assert (opt.num_snapshots, opt.schedule.steps) == (0, 0)
    train(plain, alone, range(4, 9))
    train(adopted, opt, range(4, 9))
    assert same(plain.state_dict(), adopted.state_dict())
    assert same(alone.state_dict(), opt.base.state_dict())
    assert opt.num_snapshots == 2


def test_the_plain_optimizers_state_dict_can_be_taken_back_out() -> None:
    plain, wrapped = small_model(), small_model()
    alone, opt = adamw(plain), LAWA(adamw(wrapped), every=1)
    train(plain, alone, 4)
    train(wrapped, opt, 4)
    back_out = LAWA(adamw(small_model()))
    back_out.load_state_dict(through_a_file(opt.state_dict()))
    assert same(alone.state_dict(), back_out.base.state_dict())
    assert same(alone.state_dict(), opt.base.state_dict())
    again = adamw(wrapped)
    again.load_state_dict(back_out.base.state_dict())
    train(plain, alone, range(4, 7))
    train(wrapped, again, range(4, 7))
    assert same(plain.state_dict(), wrapped.state_dict())


def test_saved_within_averaged_it_carries_the_live_weights() -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=3, every=1)
    train(model, opt, 4)
    live = copy.deepcopy(model.state_dict())
    with opt.averaged(), opt.averaged(k=1):
        weights, state_dict = through_a_file((model.state_dict(), opt.state_dict()))
    resumed = small_model(seed=1)
    resumed.load_state_dict(weights)
    again = LAWA(adamw(resumed), k=3, every=1)
    again.load_state_dict(state_dict)
    with pytest.raises(RuntimeError, match=r"step\(\) while averaged weights are in the model"):
        again.step()
    again.train()
    assert same(live, resumed.state_dict())
    train(model, opt, range(4, 6))
    train(resumed, again, range(4, 6))
    assert same(model.state_dict(), resumed.state_dict())


def of_a_model(sizes: tuple[int, ...] = (4, 8, 2), k: int = 3, split: bool = False) -> Any:
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2]))
    parameters = list(model.parameters())
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}] if split else parameters
    opt = LAWA(torch.optim.AdamW(groups, lr=0.01), k=k, every=1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    opt.step()
    return opt.state_dict()


def changed(name: str, value: Any) -> Callable[[], Any]:
    def make_state_dict() -> Any:
        state_dict = of_a_model()
        if value is None:
            del state_dict["state"][2][name]
        else:
            state_dict["state"][2][name] = value
        return state_dict

    return make_state_dict


REFUSED = {
    "two values of k": (changed("lawa_k", 4), "parameter 2 has lawa_k=4 and parameter 0 has 3"),
    "another shape": (
        lambda: of_a_model((4, 9, 2)),
        r"parameter 0 has shape \(8, 4\) and its saved snapshot lawa_0 has \(9, 4\).*another model",
    ),
    "other group sizes": (
        lambda: of_a_model(split=True),
        r"parameter groups of \[1, 3\] parameters and this optimizer of \[4\]: it is of another",
    ),
    "live values of other buffers": (
        lambda: {**of_a_model(), "lawa_buffers": [{"lawa_live": torch.ones(1)}, {}]},
        "of 2 buffers and this LAWA has 0, .*their live values would be lost",
    ),
    "a snapshot is missing": (
        changed("lawa_0", None),
        "parameter 2: snapshot lawa_0 of 1 is missing",
    ),
    "a snapshot of another shape": (changed("lawa_0", torch.ones(1)), r"lawa_0 has \(1,\)"),
    "held": (changed("lawa_held", 7), "parameter 2: lawa_held must be from 0 to 3: 7"),
    "next": (changed("lawa_next", 3), "parameter 2: lawa_next must be from 0 to 2: 3"),
    "step": (changed("lawa_step", "ten"), "parameter 2: lawa_step must be a step: 'ten'"),
    "newest": (changed("lawa_newest", None), "parameter 2: lawa_newest must be a step: None"),
    "enabled": (changed("lawa_enabled", "no"), "parameter 2: lawa_enabled must be 0 or 1: 'no'"),
    "enabled out of range": (changed("lawa_enabled", 2), "lawa_enabled must be 0 or 1: 2"),
    "live weights of another shape": (changed("lawa_live", torch.ones(1)), "lawa_live has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(name: str) -> None:
    make_state_dict, message = REFUSED[name]
    model = small_model()
    opt = LAWA(adamw(model), k=3, every=1)
    train(model, opt, 5)
    before = everything(model, opt)
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(make_state_dict())
    assert same(before, everything(model, opt))


def test_what_the_wrapped_optimizer_refuses_changes_nothing() -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=3, every=1)
    train(model, opt, 5)
    state_dict = of_a_model()
    before = everything(model, opt)

    def refuse(optimizer: Any, state: Any) -> None:
        raise KeyError("not mine")

    opt.base.register_load_state_dict_pre_hook(refuse)
    with pytest.raises(ValueError, match=r"AdamW refuses its part .*: KeyError: 'not mine'"):
        opt.load_state_dict(state_dict)
    assert same(before, everything(model, opt))


def test_loading_leaves_the_state_dict_as_it_was() -> None:
    state_dict = of_a_model()
    before = copy.deepcopy(state_dict)
    opt = LAWA(adamw(model := small_model()), k=3, every=1)
    opt.load_state_dict(state_dict)
    train(model, opt, 3)
    for entry in before["state"].values():  # the wrapped optimizer's tensors are aliased by torch
        for name in [name for name in entry if not name.startswith("lawa_")]:
            del entry[name]
    for index, entry in before["state"].items():
        assert same(entry, {name: state_dict["state"][index][name] for name in entry})
    assert same(before["param_groups"], state_dict["param_groups"])
