"""What can be had from the window, and that the live weights are safe meanwhile."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lawa_opt import LAWA
from lawa_opt.reduction import FARTHEST_BYTES
from tests.support.small_training import (
    DENSE,
    NEEDS_CLOSURE,
    bits,
    everything,
    loss_of,
    make,
    same,
    small_model,
    train,
    weights_of,
)


def trained(steps: int = 5, k: int = 3, **options: Any) -> tuple[nn.Module, LAWA]:
    model = small_model()
    opt = LAWA(torch.optim.AdamW(model.parameters(), lr=0.05), k=k, every=1, **options)
    train(model, opt, steps)
    return model, opt


def snapshots_of(model: nn.Module, opt: LAWA, steps: int) -> list[list[torch.Tensor]]:
    """The weights after each of so many further steps."""
    history = []
    for step in range(steps):
        train(model, opt, range(step, step + 1))
        history.append(weights_of(model))
    return history


def mean_of(history: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack(weights).double().mean(0).float() for weights in zip(*history, strict=True)]


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_the_live_weights_come_back_bit_for_bit_also_after_an_error() -> None:
    model, opt = trained()
    with torch.no_grad():  # what a copy through arithmetic would lose
        model[0].weight[0, :3] = torch.tensor([-0.0, float("inf"), 1e-42])
        model[0].weight.view(torch.int32)[1, 0] = 0x7FC12345  # a NaN with a payload
    before = everything(model, opt)
    with opt.averaged():
        assert not same(before["weights"], model.state_dict())
    assert same(before, everything(model, opt))

    def fail_inside() -> None:
        with opt.averaged(), torch.no_grad():
            model[0].weight.fill_(9.0)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert same(before, everything(model, opt))


def test_parameters_stay_the_same_objects_in_the_same_memory() -> None:
    model, opt = trained()
    places = [(id(p), p.data_ptr()) for p in model.parameters()]
    with opt.averaged():
        assert [(id(p), p.data_ptr()) for p in model.parameters()] == places
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == places


def test_every_shorter_window_can_be_had_from_one_training() -> None:
    model, opt = trained(0, k=5)
    history = snapshots_of(model, opt, 7)
    for latest in (None, 1, 2, 3, 4, 5):
        with opt.averaged(latest):
            assert_close(weights_of(model), mean_of(history[-(latest or 5) :]))


@pytest.mark.parametrize("latest", [0, -1, 4, True, 1.5, "all"])
def test_more_than_is_held_is_refused(latest: Any) -> None:
    model, opt = trained(5, k=3)
    before = everything(model, opt)
    for read in (
        lambda: opt.averaged(latest).__enter__(),
        lambda: opt.averaged_state_dict(model, latest),
        lambda: opt.averaged_model(model, latest),
        lambda: opt.restart_from_average(latest),
    ):
        with pytest.raises(ValueError, match=f"from 1 to the 3 snapshots held: {latest!r}"):
            read()
    assert same(before, everything(model, opt))


def test_an_empty_window_is_an_error_or_the_live_weights_when_asked_for() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), every=10)
    train(model, opt, 4)
    message = r'empty after 4 steps with every=10: .*averaged\(if_empty="live"\)'
    for read in (
        lambda: opt.averaged().__enter__(),
        lambda: opt.averaged_state_dict(model),
        lambda: opt.averaged_model(model),
        opt.restart_from_average,
    ):
        with pytest.raises(RuntimeError, match=message):
            read()
    live = weights_of(model)
    with opt.averaged(if_empty="live"):
        assert all(map(torch.equal, live, weights_of(model)))
        opt.step()  # nothing was put in, so that nothing is in the way
    opt.collect()
    with opt.averaged(if_empty="live"), pytest.raises(RuntimeError, match="while averaged"):
        opt.step()


def test_blocks_nest() -> None:
    model, opt = trained(0)
    history = snapshots_of(model, opt, 4)
    live = weights_of(model)
    with opt.averaged():
        outer = weights_of(model)
        with opt.averaged(k=1):
            assert_close(weights_of(model), history[-1])
        assert all(map(torch.equal, outer, weights_of(model)))
        assert_close(outer, mean_of(history[-3:]))
    assert all(map(torch.equal, live, weights_of(model)))


def test_training_with_averaged_weights_in_the_model_is_refused() -> None:
    model, opt = trained()
    before = everything(model, opt)
    for call in (opt.step, opt.collect, opt.restart_from_average):
        message = f"{call.__name__}.. while averaged.*train"
        with opt.averaged(), pytest.raises(RuntimeError, match=message):
            call()
        opt.eval()
        with pytest.raises(RuntimeError, match=message):
            call()
        opt.train()
    assert same(before, everything(model, opt))


def test_eval_and_train() -> None:
    model, opt = trained(0)
    history = snapshots_of(model, opt, 4)
    live = weights_of(model)
    for _ in range(2):  # called twice they do nothing more
        opt.eval()
        assert_close(weights_of(model), mean_of(history[-3:]))
    for _ in range(2):
        opt.train()
        assert all(map(torch.equal, live, weights_of(model)))
    opt.step()


def test_eval_with_an_empty_window_warns_and_leaves_the_weights() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters()))
    live = weights_of(model)
    with pytest.warns(UserWarning, match=r"LAWA: eval\(\): the window is empty"):
        opt.eval()
    opt.train()
    assert all(map(torch.equal, live, weights_of(model)))


def test_train_within_a_block_puts_the_live_weights_back_for_good() -> None:
    model, opt = trained()
    live = weights_of(model)
    with opt.averaged(), opt.averaged(k=1):
        opt.train()
        assert all(map(torch.equal, live, weights_of(model)))
        train(model, opt, range(5, 6))
        moved = weights_of(model)
    assert all(map(torch.equal, moved, weights_of(model)))


def test_gradients_taken_before_the_block_are_there_after_it() -> None:
    model, opt = trained()
    opt.zero_grad()
    loss_of(model, 9).backward()
    before = [bits(p.grad) for p in model.parameters()]
    with opt.averaged():
        pass
    assert before == [bits(p.grad) for p in model.parameters()]


def test_an_averaged_state_dict_is_a_copy_of_the_whole_model(tmp_path: Any) -> None:
    model, opt = trained(0)
    model.append(nn.Linear(2, 2))  # not optimized
    model.append(nn.Linear(4, 8))
    model[4].weight = model[0].weight  # tied
    model.register_buffer("scale", torch.ones(2))
    history = snapshots_of(model[:3], opt, 4)
    live = copy.deepcopy(model.state_dict())
    averaged = opt.averaged_state_dict(model)
    assert list(averaged) == list(live)
    assert same(live, model.state_dict())
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert_close([averaged[name] for name in names], mean_of(history[-3:]))
    with opt.averaged():
        assert same(averaged, dict(model.state_dict()))
    pointers = [value.data_ptr() for value in averaged.values()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {value.data_ptr() for value in model.state_dict().values()}
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    safetensors.save_file(averaged, tmp_path / "averaged.safetensors")
    read = safetensors.load_file(tmp_path / "averaged.safetensors")
    assert all(torch.equal(averaged[name], read[name]) for name in averaged)
    kept = copy.deepcopy(averaged)
    train(model[:3], opt, range(4, 6))
    assert same(kept, averaged)


class Noting(nn.Linear):
    """A layer with more in its state dict than tensors."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.notes = {"seen": [1]}

    def get_extra_state(self) -> Any:
        return self.notes

    def set_extra_state(self, state: Any) -> None:
        self.notes = state


def test_extra_state_is_copied() -> None:
    model = Noting()
    opt = LAWA(torch.optim.SGD(model.parameters()), every="manual")
    opt.collect()
    averaged, twin = opt.averaged_state_dict(model), opt.averaged_model(model)
    model.notes["seen"].append(2)
    assert averaged["_extra_state"] == twin.notes == {"seen": [1]}


def test_a_state_dict_of_another_model_is_refused() -> None:
    _, opt = trained()
    with pytest.raises(ValueError, match=r"no parameter of this model: is it the one trained\?"):
        opt.averaged_state_dict(small_model())


def test_an_averaged_model_is_one_of_its_own() -> None:
    model, opt = trained()
    before = everything(model, opt)
    twin = opt.averaged_model(model, k=2)
    assert same(before, everything(model, opt))
    with opt.averaged(k=2):
        assert same(model.state_dict(), twin.state_dict())
    train(twin, torch.optim.SGD(twin.parameters(), lr=1.0), 2)
    assert same(before, everything(model, opt))


def test_readings_within_averaged_are_of_the_window() -> None:
    model, opt = trained()
    outside = opt.averaged_state_dict(model, 2)
    with opt.averaged():
        assert same(outside, opt.averaged_state_dict(model, 2))


class Counting(nn.Module):
    """A layer with buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.long))
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("scale", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.ready.fill_(bool(self.seen[0] > 2))
        self.scale.fill_(float(self.seen[0]))
        return self.layer(x)


def test_buffers_floating_point_are_averaged_and_of_others_the_latest_is_taken() -> None:
    model = Counting()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=1, buffers=model)
    train(model, opt, 5)
    model.seen += 10
    averaged = opt.averaged_state_dict(model, dtype=torch.float64)
    assert averaged["seen"].tolist() == [5, 5, 5]
    assert averaged["ready"].item() is True
    assert averaged["scale"].tolist() == [4.0, 4.0]
    assert (averaged["seen"].dtype, averaged["scale"].dtype) == (torch.long, torch.float64)
    with opt.averaged():
        assert (model.seen[0].item(), model.scale[0].item()) == (5, 4.0)
    assert (model.seen[0].item(), model.scale[0].item()) == (15, 5.0)


def test_buffers_that_are_not_given_are_left_alone() -> None:
    model = Counting()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=1)
    train(model, opt, 5)
    with opt.averaged():
        assert (model.seen[0].item(), model.scale[0].item()) == (5, 5.0)


def test_batch_norm_statistics_under_the_averaged_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=1, buffers=model)
    train(model, opt, 6)
    live = copy.deepcopy(model.state_dict())
    batches = [torch.randn(16, 4) for _ in range(5)]
    with opt.averaged():
        update_bn(batches, model)
        hidden = [model[0](batch).double() for batch in batches]
        assert_close(
            [model[1].running_mean, model[1].running_var],
            [
                torch.stack([h.mean(0) for h in hidden]).mean(0).float(),
                torch.stack([h.var(0) for h in hidden]).mean(0).float(),
            ],
        )
        assert model[1].num_batches_tracked.item() == 5
    assert same(live, dict(model.state_dict()))


def test_the_average_can_become_the_live_weights() -> None:
    model, opt = trained(0)
    history = snapshots_of(model, opt, 4)
    state = copy.deepcopy(opt.base.state_dict())
    opt.restart_from_average(k=2)
    assert_close(weights_of(model), mean_of(history[-2:]))
    assert same(state, opt.base.state_dict())
    assert opt.num_snapshots == 3
    by_hand = copy.deepcopy(model)
    base = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    base.load_state_dict(state)
    train(by_hand, base, range(4, 7))
    train(model, opt, range(4, 7))
    assert same(by_hand.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", DENSE)
def test_a_restart_can_reset_the_state_of_every_optimizer(kind: Any) -> None:
    model = small_model()
    closure = kind in NEEDS_CLOSURE
    opt = LAWA(make(kind, model), k=3, every=1)
    train(model, opt, 4, closure=closure)
    before = everything(model, opt)
    if kind is torch.optim.Adagrad:
        with pytest.raises(TypeError, match="Adagrad makes its state when it is built"):
            opt.restart_from_average(reset_state=True)
        assert same(before, everything(model, opt))
        return
    opt.restart_from_average(reset_state=True)
    assert not opt.base.state
    fresh = copy.deepcopy(model)
    train(model, opt, range(4, 7), closure=closure)
    train(fresh, make(kind, fresh), range(4, 7), closure=closure)
    assert same(fresh.state_dict(), model.state_dict())


def test_collecting_in_inference_mode() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every="manual")
    with torch.inference_mode():
        opt.collect()
        with opt.averaged():
            pass
    train(model, opt, 2)
    opt.collect()
    opt.eval()
    with torch.inference_mode():
        opt.train()
        opt.eval()
    opt.train()
    train(model, opt, 2)


@pytest.mark.parametrize("shapes", [[(4, 3), (5,)], [(4, 3)]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_autograd_sees_that_a_reading_wrote_what_backward_needs(
    shapes: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    weights = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    opt = LAWA(torch.optim.SGD(weights, lr=0.1), k=2, every="manual")
    opt.collect()
    opt.collect()
    losses = [weight.square().sum() for weight in weights]
    opt.eval()
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, opt = trained(dtype=torch.bfloat16)
        with opt.averaged():
            model(torch.ones(2, 4))
        opt.averaged_model(model)


def test_infinities_that_all_snapshots_share_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    mask = torch.tensor([0.0, -torch.inf, torch.inf])
    opt = LAWA(torch.optim.SGD([weight], lr=0.1), k=3, every=1, buffers=[mask])
    for step in range(3):
        mask[0] = step
        opt.collect()
    with opt.averaged():
        assert mask.tolist() == [1.0, -torch.inf, torch.inf]
    assert mask.tolist() == [2.0, -torch.inf, torch.inf]


def test_a_reading_that_cannot_be_as_asked_is_refused() -> None:
    model = nn.Linear(4, 2)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1))
    opt.collect()
    with pytest.raises(ValueError, match=r"dtype must be of floating-point means.*got torch.int32"):
        opt.averaged_state_dict(model, dtype=torch.int32)
    with pytest.raises(ValueError, match='if_empty must be "raise" or "live": \'Live\''):
        opt.averaged(if_empty="Live")
    for read in (opt.averaged_state_dict, opt.averaged_model):
        with pytest.raises(TypeError, match="others must be LAWAs: got SGD; wrap it in one too"):
            read(model, others=[opt.base])


def test_complex_means_keep_their_imaginary_part_in_another_dtype() -> None:
    model = nn.Linear(4, 2, dtype=torch.complex64)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1))
    opt.collect()
    assert torch.equal(opt.averaged_state_dict(model, dtype=torch.float64)["weight"], model.weight)


@pytest.mark.parametrize("farthest", [1, 300])
def test_a_window_in_parts_reads_and_resumes_as_one_in_one_part(
    farthest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = trained(k=3)
    with monkeypatch.context() as patched:
        # What CUDA's kernels ask for, so small that a CPU's test can have it.
        patched.setitem(FARTHEST_BYTES, "cpu", farthest)
        twin, in_parts = trained(k=3)
    assert len(in_parts.window.rings) > len(whole.window.rings) == 1
    assert in_parts.num_snapshots == whole.num_snapshots == 3
    for k in (None, 2):
        want = whole.averaged_state_dict(model, k)
        assert same(want, in_parts.averaged_state_dict(twin, k))
    for source in (in_parts, whole):
        loaded = LAWA(torch.optim.AdamW(model.parameters(), lr=0.05), k=3, every=1)
        loaded.load_state_dict(copy.deepcopy(source.state_dict()))
        assert same(loaded.averaged_state_dict(model), whole.averaged_state_dict(model))
