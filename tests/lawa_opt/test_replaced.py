"""Parameters that come and go in mid-training: memory and state are those of what is there."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lawa_opt import LAWA


def bytes_held(opt: LAWA) -> int:
    state_dict = opt.state_dict()
    snapshots = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for entry in state_dict["state"].values()
        for name, value in entry.items()
        if name[5:].isdigit()
    }
    return sum(snapshots.values())


def grow(opt: LAWA, index: int, rows: int) -> nn.Parameter:
    """Put a longer parameter in the place of one, as densification in Gaussian splatting does."""
    parameters = opt.param_groups[0]["params"]
    old = parameters[index]
    opt.state.pop(old, None)
    parameters[index] = nn.Parameter(torch.cat([old.detach(), old.detach()[:rows]]))
    return old


def step(opt: LAWA) -> None:
    opt.zero_grad()
    for parameter in opt.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    opt.step()


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(9, 12)), max_size=4),
)
def test_memory_is_of_the_parameters_that_there_are(
    k: int, growths: list[tuple[int, int, int]]
) -> None:
    start = [nn.Parameter(torch.randn(64, 3)) for _ in range(3)]
    opt = LAWA(torch.optim.SGD(start, lr=0.1), k=k, every=1)
    kept = []  # a user may still hold the old ones
    for index, rows, steps in [(0, 1, 9), *growths]:
        kept.append(grow(opt, index, rows))
        for _ in range(steps):
            step(opt)
        parameters = opt.param_groups[0]["params"]
        slots = opt.nbytes
        # A row is filled up to a multiple of some hundred elements.
        assert slots <= k * (sum(p.nbytes for p in parameters) + len(opt.window.rings) * 4 * 384)
        assert {id(t) for ring in opt.window.rings for t in ring.tensors} == set(
            map(id, parameters)
        )
        twin = LAWA(torch.optim.SGD([p.detach().clone() for p in parameters], lr=0.1), k=k)
        twin.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert bytes_held(twin) <= k * (sum(p.nbytes for p in parameters) + 3 * 4 * 384)


def test_the_mean_of_a_new_parameter_is_over_its_own_snapshots() -> None:
    opt = LAWA(
        torch.optim.SGD([nn.Parameter(torch.zeros(4)) for _ in range(2)], lr=1.0), k=3, every=1
    )
    for _ in range(4):
        step(opt)
    grow(opt, 0, 2)
    for _ in range(2):
        step(opt)
    new, other = opt.param_groups[0]["params"]
    with opt.averaged():
        torch.testing.assert_close(new.detach(), torch.full((6,), -5.5))
        torch.testing.assert_close(other.detach(), torch.full((4,), -5.0))


def test_a_parameter_that_left_is_live_in_a_reading_at_once() -> None:
    stays, leaves = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    opt = LAWA(torch.optim.SGD([stays, leaves], lr=1.0), k=3, every=1)
    for _ in range(4):
        step(opt)
    opt.param_groups[0]["params"].pop()
    with opt.averaged():
        torch.testing.assert_close(stays.detach(), torch.full((2,), -3.0))
        torch.testing.assert_close(leaves.detach(), torch.full((3,), -4.0))


def test_a_parameter_that_got_another_shape_in_place_begins_anew() -> None:
    weight, bias = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    opt = LAWA(torch.optim.SGD([weight, bias], lr=1.0), k=3, every=1)
    for _ in range(3):
        step(opt)
    weight.data = torch.full((5,), -10.0)
    with pytest.raises(RuntimeError, match=r"shape \(5,\) and its snapshots have \(3,\).*collect"):
        opt.eval()
    assert not opt.swaps
    step(opt)
    with opt.averaged():
        torch.testing.assert_close(weight.detach(), torch.full((5,), -11.0))
        torch.testing.assert_close(bias.detach(), torch.full((2,), -3.0))
