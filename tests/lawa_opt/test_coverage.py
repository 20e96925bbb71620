"""A part of a model is never given out for the average of the whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import (
    by_dimension,
    loss_of,
    same,
    small_model,
    train,
    train_apart,
    weights_of,
)


@pytest.mark.parametrize("reading", ["averaged_state_dict", "averaged_model"])
def test_two_optimizers_are_averaged_together_or_not_at_all(reading: str) -> None:
    model = small_model()
    muon, adam = (LAWA(base, k=3, every=1) for base in by_dimension(model))
    history = train_apart(model, (muon, adam), 4)
    mean = [torch.stack(tensors).mean(0) for tensors in zip(*history[-3:], strict=True)]
    for one, other, named in ((muon, adam, r"0.bias, 2.bias"), (adam, muon, r"0.weight, 2.weight")):
        with pytest.raises(ValueError, match=rf"{named} would be live.*others=\[its LAWA\]"):
            getattr(one, reading)(model)
        whole = getattr(one, reading)(model, others=[other])
        whole = whole if isinstance(whole, dict) else whole.state_dict()
        torch.testing.assert_close(list(whole.values()), mean, rtol=1e-6, atol=1e-7)
        with one.averaged(), other.averaged():
            assert same(dict(whole), dict(model.state_dict()))


def test_an_optimizer_without_a_lawa_is_named() -> None:
    model = small_model()
    muon, adam = by_dimension(model)
    opt = LAWA(muon, k=3, every=1)
    train_apart(model, (opt, adam), 4)
    with pytest.raises(ValueError, match=r"0.bias, 2.bias .*AdamW trains them: wrap them in one"):
        opt.averaged_state_dict(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("weight" in name)
    opt.averaged_state_dict(model)


def test_what_nobody_trains_is_the_same_live_and_averaged() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model[2].parameters(), lr=0.1), k=3, every=1)
    train(model, opt, 40)
    found = opt.averaged_state_dict(model)
    assert torch.equal(found["0.weight"], model[0].weight)
    assert not torch.equal(found["2.weight"], model[2].weight)


def test_trained_by_hand_it_is_told() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model[2].parameters(), lr=0.1), k=3, every=1)
    for step in range(40):
        train(model, opt, range(step, step + 1))
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.sub_(0.1 * parameter.grad)
    with pytest.warns(UserWarning, match=r"0.weight, 0.bias are live.*in no window.*master"):
        opt.averaged_state_dict(model)


def test_thawed_parameters_are_refused_until_they_have_a_snapshot() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    opt = LAWA(torch.optim.SGD(model[2].parameters(), lr=0.1), k=3, every=3)
    train(model, opt, 4)
    opt.averaged_state_dict(model)
    model[0].requires_grad_(True)
    opt.add_param_group({"params": list(model[0].parameters())})
    train(model, opt, range(4, 5))
    with (
        pytest.warns(UserWarning, match=r"2 of the parameters have no snapshot yet and stay live"),
        pytest.raises(ValueError, match=r"0.weight, 0.bias were added to .*collect\(\), first"),
    ):
        opt.averaged_state_dict(model)
    opt.collect()
    opt.averaged_state_dict(model)


def masters_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().float().requires_grad_() for p in model.parameters()]


def test_master_weights_are_seen_where_the_model_is_given() -> None:
    model = small_model().bfloat16()
    opt = LAWA(torch.optim.AdamW(masters_of(model), lr=0.05), k=3, every="manual")
    opt.collect()
    for reading in (opt.averaged_state_dict, opt.averaged_model):
        with pytest.raises(ValueError, match=r"no parameter of this model.*master.*ModelWindow"):
            reading(model)
    with pytest.raises(ValueError, match=r"no parameter of this model.*master"):
        LAWA(torch.optim.AdamW(masters_of(model), lr=0.05), buffers=model)


def test_the_way_out_for_master_weights_averages_the_models_own() -> None:
    model = small_model().bfloat16()
    masters = masters_of(model)
    adam = torch.optim.AdamW(masters, lr=0.05)
    opt = LAWA(torch.optim.SGD(model.parameters()), k=3, every="manual")
    history = []
    for step in range(5):
        model.zero_grad()
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        model(x.bfloat16()).square().mean().backward()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad = parameter.grad.float()
            adam.step()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        opt.collect()
        history.append(weights_of(model))
    means = opt.averaged_state_dict(model, dtype=torch.float32).values()
    for mean, snapshots in zip(means, zip(*history[-3:], strict=True), strict=True):
        torch.testing.assert_close(mean, torch.stack(snapshots).float().mean(0))


def test_parameters_that_the_model_has_replaced_are_seen() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=1, buffers=[torch.ones(1)])
    train(model, opt, 3)
    model[2].load_state_dict(copy.deepcopy(model[2].state_dict()), assign=True)
    with pytest.raises(ValueError, match=r"2.weight, 2.bias .*other tensors than the optimizer"):
        opt.averaged_state_dict(model)


def test_a_bare_optimizer_beside_it_is_told_of_where_the_model_is_known() -> None:
    model = small_model()
    muon, adam = by_dimension(model)
    opt = LAWA(muon, k=3, every=1, buffers=model)
    train_apart(model, (opt, adam), 4)
    message = r"0.bias, 2.bias stay live .*AdamW trains them and is in no LAWA"
    with pytest.warns(UserWarning, match=message), opt.averaged():
        pass
    with opt.averaged():  # once
        pass
    other = LAWA(adam, k=3, every=1)
    whole = LAWA(by_dimension(model)[0], k=3, every=1, buffers=model)
    train_apart(model, (whole, other), 4)
    del muon
    with whole.averaged(), other.averaged():
        pass


@pytest.mark.parametrize("by_block", [True, False])
def test_half_of_an_average_is_told_of_where_the_model_is_known(by_block: bool) -> None:
    model = small_model()
    own, other = (LAWA(each, k=3, every=1, buffers=model) for each in by_dimension(model))
    train_apart(model, (own, other), 4)
    message = r"0.bias, 2.bias stayed live .*LAWA of AdamW .*LAWA\(\[Muon, AdamW\]\)"
    if by_block:
        # Inside, outside, and a block within a block of its own.
        with own.averaged(), other.averaged(), own.averaged(k=1):
            pass
        own.average.said.clear()
        with other.averaged(), own.averaged():
            pass
        own.average.said.clear()
        with pytest.warns(UserWarning, match=message), own.averaged():
            pass
        with own.averaged():  # once
            pass
    else:
        own.eval()
        other.eval()
        own.train()
        other.train()
        own.average.said.clear()
        own.eval()
        with pytest.warns(UserWarning, match=message):
            own.train()


def test_masters_of_a_part_are_named_as_such() -> None:
    model = small_model()
    model[0].bfloat16()
    masters = [p.detach().float().requires_grad_() for p in model[0].parameters()]
    opt = LAWA(torch.optim.SGD([*masters, *model[2].parameters()], lr=0.1), k=2, every="manual")
    opt.collect()
    with pytest.raises(ValueError, match=r"0.weight, 0.bias .*in another type.*ModelWindow"):
        opt.averaged_state_dict(model)


def test_flat_masters_are_told_of_also_after_a_resume() -> None:
    for resumed_at in (0, 500):
        model = small_model()
        flat = torch.cat([p.detach().flatten() for p in model[0].parameters()]).requires_grad_()
        opt = LAWA(torch.optim.SGD([flat, *model[2].parameters()], lr=0.01), k=2, every=1)
        opt.schedule.steps = resumed_at
        for step in range(60):
            loss_of(model, step).backward()
            flat.grad = torch.cat([p.grad.flatten() for p in model[0].parameters()])
            opt.step()
            with torch.no_grad():
                model[0].weight.copy_(flat[:32].view(8, 4))
                model[0].bias.copy_(flat[32:])
        with pytest.warns(UserWarning, match=r"0.weight, 0.bias are live.*master"):
            opt.averaged_state_dict(model)


def test_a_criterion_of_its_own_beside_a_backbone_that_rests() -> None:
    model, criterion = small_model(), nn.Linear(2, 8)
    groups = [*model[2].parameters(), *criterion.parameters()]
    opt = LAWA(torch.optim.SGD(groups, lr=0.1), k=3, every=1, buffers=model)
    train(model, opt, 40)
    assert torch.equal(opt.averaged_state_dict(model)["0.weight"], model[0].weight)


def test_buffers_of_a_part_that_another_optimizer_trains() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    muon, adam = by_dimension(model)
    one, other = LAWA(muon, k=2, every=1, buffers=[model[1]]), LAWA(adam, k=2, every=1)
    train_apart(model, (one, other), 4)
    with one.averaged(), other.averaged():
        pass
    one.averaged_state_dict(model, others=[other])


def test_a_group_hidden_for_a_reading_keeps_its_snapshots() -> None:
    model = small_model()
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
    opt = LAWA(torch.optim.SGD(groups, lr=0.1), k=3, every=1)
    train(model, opt, 4)
    before = opt.averaged_state_dict(model)
    hidden = opt.param_groups
    opt.param_groups = hidden[:1]
    with opt.averaged():
        pass
    opt.param_groups = hidden
    assert same(before, opt.averaged_state_dict(model))
