"""BatchNorm's statistics of the averaged weights, and the live ones back."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import same, train

BATCHES = [torch.randn(16, 4, generator=torch.Generator().manual_seed(i)) + i for i in range(3)]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return x


def trained(**options: Any) -> tuple[nn.Sequential, LAWA]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.3), Counter(), nn.Dropout(), nn.Linear(8, 2)
    )
    options = {"buffers": model, **options}
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=3, every=1, **options)
    train(model, opt, 6)
    return model, opt


def all_of(model: nn.Module) -> Any:
    """All that a forward pass in training mode may change."""
    return copy.deepcopy(
        (
            model.state_dict(),
            list(model.buffers()),
            [(module.training, getattr(module, "momentum", 0)) for module in model.modules()],
            torch.get_rng_state(),
        )
    )


def test_statistics_are_those_of_the_averaged_weights_and_the_live_ones_come_back() -> None:
    model, opt = trained()
    model[1].eval()
    live = all_of(model)
    average = opt.averaged_state_dict(model)
    twin = copy.deepcopy(model[0]).double()
    twin.load_state_dict({"weight": average["0.weight"], "bias": average["0.bias"]})
    with torch.no_grad():
        outs = [twin(batch.double()) for batch in BATCHES]
    with opt.averaged(update_bn=BATCHES):
        norm = model[1]
        for found, want in (
            (norm.running_mean, torch.stack([out.mean(0) for out in outs]).mean(0)),
            (norm.running_var, torch.stack([out.var(0) for out in outs]).mean(0)),
        ):
            torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)
        assert int(norm.num_batches_tracked) == len(BATCHES)
        assert same(all_of(model)[2:], live[2:]), "modes, momenta and random numbers"
        assert torch.equal(model[0].weight, average["0.weight"])
        with pytest.warns(UserWarning, match="statistics were computed anew inside this block"):
            inside = opt.averaged_state_dict(model)
        assert same(inside["1.running_mean"], average["1.running_mean"])
    assert same(all_of(model), live)


def test_blocks_nest() -> None:
    model, opt = trained()
    live = all_of(model)
    with opt.averaged(k=1, update_bn=BATCHES):
        outer = all_of(model)
        with opt.averaged(update_bn=BATCHES[:1]):
            assert int(model[1].num_batches_tracked) == 1
        assert same(all_of(model), outer)
        with opt.averaged():
            pass
        assert same(all_of(model), outer)
    assert same(all_of(model), live)


def test_a_function_is_decorated_with_a_loader_that_begins_anew() -> None:
    model, opt = trained()
    evaluate = opt.averaged(update_bn=BATCHES)(lambda: int(model[1].num_batches_tracked))
    assert [evaluate(), evaluate()] == [3, 3]


def failing() -> Iterator[torch.Tensor]:
    yield BATCHES[0]
    raise OSError("the disk is gone")


def interrupted() -> Iterator[torch.Tensor]:
    yield BATCHES[0]
    signal.raise_signal(signal.SIGINT)
    pytest.fail("the interrupt came too late")


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (failing(), OSError, "the disk is gone"),
        (interrupted(), KeyboardInterrupt, None),
        ([], ValueError, "the loader gave no batch"),
        ([torch.ones(2, 3)], RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_an_error_of_the_loader_leaves_all_as_it_was(
    loader: Any, error: type[BaseException], message: str | None
) -> None:
    model, opt = trained()
    live = all_of(model)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error, match=message), opt.averaged(update_bn=loader):
        pytest.fail("the block was entered")
    assert same(all_of(model), live)
    assert not opt.swaps
    assert signal.getsignal(signal.SIGINT) == before


def test_an_error_in_the_block_leaves_all_as_it_was() -> None:
    model, opt = trained()
    live = all_of(model)
    with pytest.raises(OSError, match="evaluate"), opt.averaged(update_bn=BATCHES):
        raise OSError("evaluate")
    assert same(all_of(model), live)


def test_what_cannot_be_done_is_refused_before_anything_changes() -> None:
    plain = nn.Linear(4, 2)
    for buffers, message in (
        ((), "0 modules and 0 tensors as buffers; give LAWA the model itself, buffers=model"),
        ((plain, nn.ReLU()), "2 modules and 0 tensors"),
        ([torch.ones(2)], "0 modules and 1 tensors"),
        (plain, "Linear has no BatchNorm with running statistics"),
        (nn.Sequential(plain, nn.BatchNorm1d(2, track_running_stats=False)), "Sequential has no"),
    ):
        opt = LAWA(torch.optim.SGD(plain.parameters(), lr=0.1), buffers=buffers)
        opt.collect()
        with pytest.raises(ValueError, match=message):
            opt.averaged(update_bn=BATCHES)
    with pytest.raises(TypeError, match="such as a DataLoader: got bool"):
        trained()[1].averaged(update_bn=True)


def test_with_nothing_collected_the_live_statistics_stay() -> None:
    model, opt = trained(start=100)
    live = all_of(model)
    with opt.averaged(if_empty="live", update_bn=BATCHES):
        assert same(all_of(model), live)
