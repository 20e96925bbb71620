"""A damaged state dict is refused and changes nothing, or is loaded whole: nothing in between."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import everything, same, train


def make(kind: str = "AdamW") -> tuple[nn.Module, LAWA]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    base = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    return model, LAWA(base, k=3, every=1, buffers=model)


def saved(kind: str, averaged: bool) -> dict[str, Any]:
    model, opt = make(kind)
    train(model, opt, 5)
    if averaged:
        opt.eval()
    return copy.deepcopy(opt.state_dict())


SAVED = {(kind, a): saved(kind, a) for kind in ("AdamW", "SGD") for a in (False, True)}

WEIRD = st.sampled_from(
    [
        None, True, False, -1, 0, 1, 2, 10**30, 0.5, float("nan"), "text", b"bytes", (), [], {},
        [{}], {"a": 1}, torch.ones(()), torch.ones(3), torch.ones(4, 4),
        torch.ones(2, dtype=torch.long),
        torch.ones(4, 4, device="meta"), torch.ones(4, 4, dtype=torch.complex64),
        torch.eye(4).to_sparse(), torch.zeros(0), object(),
    ]
)  # fmt: skip


def change_tensor(tensor: torch.Tensor, how: str) -> torch.Tensor:
    if how == "quantized":
        with warnings.catch_warnings(action="ignore"):  # it is going to leave torch
            return torch.quantize_per_tensor(tensor.detach().float(), 0.1, 0, torch.qint8)
    changes = {
        "meta": lambda: tensor.to("meta"),
        "complex": lambda: tensor.to(torch.complex64),
        "sparse": lambda: tensor.to_sparse(),
        "longer": lambda: torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        "whole numbers": lambda: tensor.to(torch.int32),
        "bfloat16": lambda: tensor.to(torch.bfloat16),
        "expanded": lambda: tensor.reshape(-1)[:1].expand(tensor.numel()).reshape(tensor.shape),
    }
    return changes[how]()


CHANGES = st.sampled_from(
    ["meta", "complex", "sparse", "longer", "whole numbers", "bfloat16", "quantized", "expanded"]
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind, averaged = draw(st.sampled_from(list(SAVED)))
    state_dict = copy.deepcopy(SAVED[kind, averaged])
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(places(state_dict)))
        parent = state_dict
        for key in where[:-1]:
            parent = parent[key]
        value = parent[where[-1]]
        whole = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if whole and value.dtype == torch.float32 and not value.is_meta and draw(st.booleans()):
            parent[where[-1]] = change_tensor(value, draw(CHANGES))
        elif draw(st.booleans()):
            parent[where[-1]] = copy.deepcopy(draw(WEIRD))
        else:
            del parent[where[-1]]
    return kind, state_dict


# What has no snapshot, as buffers that were not saved, is loaded so and told of in readings; what a
# load leaves out, as snapshots of other buffers, is told of at once.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LAWA. . of the .* have no snapshot yet")
@pytest.mark.filterwarnings("ignore:LAWA. load_state_dict")
@settings(
    deadline=None, max_examples=300, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(mutated())
def test_a_mutated_state_dict_is_refused_or_loaded_whole(case: tuple[str, dict[str, Any]]) -> None:
    kind, state_dict = case
    model, opt = make(kind)
    train(model, opt, range(10, 14))
    before = everything(model, opt)
    given_dict = copy_shallow(state_dict)
    try:
        opt.load_state_dict(state_dict)
    except ValueError:
        assert same(before, everything(model, opt))
        return
    assert places_same(given_dict, state_dict), "what was given is not written to"
    entries = [entry for entry in state_dict["state"].values() if "lawa_held" in entry]
    if entries:
        assert opt.num_snapshots == max(entry["lawa_held"] for entry in entries)
    for index, entry in state_dict["state"].items():
        again = opt.state_dict()["state"][index]
        for number in range(entry.get("lawa_held", 0)):
            loaded, given_one = again[f"lawa_{number}"], entry[f"lawa_{number}"]
            assert torch.equal(loaded, given_one.to(loaded.dtype))
    opt.train()
    with opt.averaged(if_empty="live"):
        pass


def copy_shallow(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: copy_shallow(value) for key, value in tree.items()}
    return [copy_shallow(value) for value in tree] if isinstance(tree, list) else tree


def places_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(places_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(places_same, one, other))
    return one is other


def without_a_window(state_dict: dict[str, Any]) -> None:
    entry = state_dict["state"][1]
    for name in [name for name in entry if name.startswith("lawa_")]:
        del entry[name]


def put(*path: Any, value: Any) -> Any:
    def change(state_dict: dict[str, Any]) -> None:
        parent: Any = state_dict
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value

    return change


REFUSED = {
    "meta": (put("state", 1, "lawa_1", value=torch.ones(4, device="meta")), 'map_location="cpu"'),
    "sparse": (put("state", 0, "lawa_1", value=torch.eye(4).to_sparse()), "plain dense tensor"),
    "complex": (put("state", 0, "lawa_1", value=torch.eye(4) * 1j), "float32.*complex64"),
    "no window": (without_a_window, "parameter 1 has no snapshots.*parameter 0 has some"),
    "held is True": (put("state", 1, "lawa_held", value=True), "must be from 0 to 3: True"),
    "a step too far": (put("state", 1, "lawa_step", value=10**30), "must be a step: 1000"),
    "another step": (put("state", 1, "lawa_step", value=9), "lawa_step=9 and parameter 0 has 5"),
    "k is a tensor": (put("state", 1, "lawa_k", value=torch.ones(2)), "lawa_k must be .*: Tensor"),
    "newest after step": (put("state", 1, "lawa_newest", value=6), "not be after .*=5: 6"),
    "an entry is a tensor": (put("state", 1, value=torch.ones(2)), "parameter 1 must be a dict"),
    "an entry is None": (put("state", 1, value=None), "parameter 1 must be a dict: None"),
    "a buffer's entry": (put("lawa_buffers", 0, value=3), "buffer 0: must be a dict.*3"),
    "no buffer's entry": (put("lawa_buffers", 1, value={}), "buffer 1 has no snapshots"),
    "buffers": (put("lawa_buffers", value=3), "lawa_buffers must be a list: int"),
    "groups": (put("param_groups", value=None), "param_groups must be a list of dicts"),
    "state": (put("state", value=[]), "state must be a dict: list"),
    "base's step": (lambda sd: sd["state"][1].pop("step"), "AdamW refuses .*'step'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_damaged_is_named(name: str, averaged: bool) -> None:
    change, message = REFUSED[name]
    model, opt = make()
    train(model, opt, range(10, 14))
    if averaged:
        opt.eval()
    before = everything(model, opt)
    state_dict = copy.deepcopy(SAVED["AdamW", False])
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(state_dict)
    assert same(before, everything(model, opt))
    with pytest.raises(ValueError, match="a state dict is a dict: got list"):
        opt.load_state_dict([])  # type: ignore[arg-type]
