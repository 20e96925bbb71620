"""Weights by step: a mean of snapshots is the training with each update scaled."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lawa_opt import LAWA, Window
from lawa_opt.weights_by_step import Weights, weighing
from tests.support.small_training import everything, same, small_model, train

# Decays as their papers have them, by the share that is over.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "1-sqrt": lambda share: 1 - share**0.5,
    "cosine": lambda share: 0.5 + 0.5 * math.cos(math.pi * share),
}
NAMES = [*DECAYS, "ema:17", "ema:0.5"]
STEPS = [3, 10, 11, 30, 31, 60]


def decay(name: str, steps: Sequence[int]) -> Callable[[float], float]:
    """The factor of the rate at a step, for snapshots of these steps."""
    begin = steps[0] - (steps[1] - steps[0]) / 2
    end = steps[-1] + (steps[-1] - steps[-2]) / 2
    if name in DECAYS:
        return lambda step: DECAYS[name]((step - begin) / (end - begin))
    half_life = float(name.removeprefix("ema:"))
    return lambda step: 1 - 2 ** -((end - step) / half_life)


def normed(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


ASCENDING = st.lists(st.integers(0, 60), min_size=2, max_size=7, unique=True).map(sorted)


@given(steps=ASCENDING, name=st.sampled_from(NAMES))
def test_each_snapshot_weighs_what_the_decay_loses_over_the_steps_next_to_it(
    steps: list[int], name: str
) -> None:
    factor = decay(name, steps)
    expected = [0.0] * len(steps)
    # From half a gap before the oldest to half a gap after the newest, by half steps.
    first, last = 3 * steps[0] - steps[1], 3 * steps[-1] - steps[-2]
    for half in range(first, last):
        middle = (half + 0.5) / 2
        nearest = min(range(len(steps)), key=lambda i: abs(steps[i] - middle))
        expected[nearest] += factor(half / 2) - factor((half + 1) / 2)
    expected[0] += 1 - factor(first / 2)  # of an EMA: what is older than the window
    assert weighing(name)(steps) == pytest.approx(expected, abs=1e-12)


@given(n=st.integers(1, 12), every=st.integers(1, 1000), start=st.integers(0, 10**9))
def test_at_equal_gaps_it_is_by_place_and_linear_is_uniform(n: int, every: int, start: int) -> None:
    steps = range(start, start + n * every, every)
    assert weighing("linear")(steps) == pytest.approx([1 / n] * n)
    assert weighing("uniform")(steps) == [1.0] * n
    for name, at in DECAYS.items():
        factors = [1.0, *(at(i / n) for i in range(1, n)), 0.0]
        by_place = [before - after for before, after in pairwise(factors)]
        assert weighing(name)(steps) == pytest.approx(by_place, abs=1e-9)
    values = [math.sin(i) for i in range(n)]
    average = values[0]
    for value in values[1:]:  # half-life of two gaps
        average = 0.5**0.5 * average + (1 - 0.5**0.5) * value
    weights = weighing(f"ema:{2 * every}")(steps)
    assert sum(map(math.prod, zip(weights, values, strict=True))) == pytest.approx(average)


def recorded(
    steps: Sequence[int], *, noise: float = 1.0
) -> tuple[nn.Module, LAWA, Tensor, list[Tensor]]:
    """Train by SGD with snapshots of these steps: the weights at the first, and all updates."""
    torch.manual_seed(0)
    model = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    nn.init.normal_(model.weight, std=3)
    curvature = torch.linspace(0.002, 0.2, 20, dtype=torch.float64)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=len(steps), every="manual")
    live = [model.weight.detach().clone()]
    for step in range(1, steps[-1] + 1):
        slope = curvature * model.weight.detach() + noise * torch.randn(20, dtype=torch.float64)
        model.weight.grad = slope
        opt.step()
        live.append(model.weight.detach().clone())
        if step in steps:
            opt.collect()
    return model, opt, live[steps[0]], [after - before for before, after in pairwise(live)]


@pytest.mark.parametrize("name", NAMES)
def test_the_average_is_the_training_with_each_update_scaled(name: str) -> None:
    model, opt, first, updates = recorded(STEPS)
    factor = decay(name, STEPS)
    c_0 = 1 - factor((STEPS[0] + STEPS[1]) / 2)
    assert weighing(name)(STEPS)[0] == pytest.approx(c_0)
    scaled = first.clone()
    for before, after in pairwise(STEPS):
        for update in updates[before:after]:
            scaled += factor((before + after) / 2) * update
    with opt.averaged(weights=name):
        assert torch.allclose(model.weight, scaled, rtol=0, atol=1e-12)
    copied = opt.averaged_state_dict(model, weights=name)["weight"]
    assert torch.allclose(copied, scaled, rtol=0, atol=1e-12)
    assert torch.equal(opt.averaged_model(model, weights=name).weight, copied)
    opt.restart_from_average(weights=name)
    assert torch.equal(model.weight, copied)


@pytest.mark.parametrize("name", DECAYS)
def test_it_is_nearer_to_the_decayed_updates_than_factors_at_the_snapshots_steps(name: str) -> None:
    steps = [60, 80, 100, 160, 180, 200, 220, 300]  # every 20, and some are lost
    _, _, first, updates = recorded(steps)
    snapshots = [first + sum(updates[steps[0] : step]) for step in steps]

    def distance(at: Callable[[int, int], float]) -> float:
        """From the sum of updates that are each scaled by the decay at their step."""
        factor, decayed = decay(name, steps), first.clone()
        for step in range(steps[0] + 1, steps[-1] + 1):
            decayed += factor(step - 0.5) * updates[step - 1]
        merged = first.clone()
        for (t, before), (u, after) in pairwise(zip(steps, snapshots, strict=True)):
            merged += factor(at(t, u)) * (after - before)
        return float((merged - decayed).norm())

    midway = distance(lambda before, after: (before + after) / 2)
    assert midway < 0.9 * distance(lambda before, after: before)
    assert midway < 0.9 * distance(lambda before, after: after)


def test_an_auto_window_and_a_part_of_it_go_by_their_steps() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=4, horizon=0.8)
    history = {}
    for step in range(1, 40):
        train(model, opt, range(step, step + 1))
        if opt.schedule.last_collect == step:
            history[step] = model[0].weight.detach().double()
    for k in (4, 3, 2, 1):
        steps = list(history)[-k:]
        assert k < 3 or len({b - a for a, b in pairwise(steps)}) > 1
        weights = weighing("1-sqrt")(steps)
        mean = sum(w * history[step] for w, step in zip(weights, steps, strict=True))
        got = opt.averaged_state_dict(model, k, weights="1-sqrt")["0.weight"]
        assert torch.allclose(got.double(), mean, rtol=1e-6, atol=1e-7)


def test_weights_may_be_given_one_by_one_or_made_of_the_steps() -> None:
    model, opt, first, updates = recorded([2, 5, 9])
    snapshots = [first, first + sum(updates[2:5]), first + sum(updates[2:9])]
    for weights in ([1, 0, 3], (1, 0, 3), torch.tensor([1, 0, 3]), lambda steps: [1, 0, 3]):
        got = opt.averaged_state_dict(model, weights=weights)["weight"]
        assert torch.allclose(got, (snapshots[0] + 3 * snapshots[2]) / 4, rtol=0, atol=1e-12)
    asked = []
    opt.averaged_state_dict(model, 2, weights=lambda steps: asked.append(list(steps)) or [1, 1])
    assert asked[0] == [5, 9]
    block = opt.averaged(2, weights=[0, 1])
    with block:
        assert torch.allclose(model.weight, snapshots[2], rtol=0, atol=1e-12)


def test_blocks_nest_and_changes_are_seen_whatever_the_weights(
    recwarn: pytest.WarningsRecorder,
) -> None:
    model, opt, *_ = recorded(STEPS)
    live = model.weight.detach().clone()
    with opt.averaged(weights="1-sqrt"):
        outer = model.weight.detach().clone()
        with opt.averaged():
            assert not torch.equal(model.weight, outer)
        assert torch.equal(model.weight, outer)
        model.weight.data = model.weight.data.clone()
    assert torch.equal(model.weight, live)
    assert not recwarn.list


def test_the_steps_are_in_the_state_dict() -> None:
    model, opt, *_ = recorded(STEPS)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=len(STEPS), every="manual")
    again.load_state_dict(torch.load(file, weights_only=True))
    for k in (6, 4):
        expected = opt.averaged_state_dict(model, k, weights="cosine")
        assert same(again.averaged_state_dict(model, k, weights="cosine"), expected)


def test_snapshots_whose_steps_a_state_dict_does_not_tell_have_no_weights_by_step() -> None:
    model, opt, *_ = recorded([2, 5, 9])
    state_dict = opt.state_dict()
    for entry in state_dict["state"].values():
        for name in [name for name in entry if name.endswith("_step") and name != "lawa_step"]:
            del entry[name]
    opt.load_state_dict(state_dict)
    with pytest.raises(ValueError, match=r"not known.*: -1, -1, -1; give one weight"):
        opt.averaged_state_dict(model, weights="linear")
    opt.step()
    opt.collect()  # one that is known does not help the others
    with pytest.raises(ValueError, match=r"not known.*: -1, -1, 10;"):
        opt.averaged_state_dict(model, weights="linear")
    assert same(opt.averaged_state_dict(model, weights=[1, 1, 1]), opt.averaged_state_dict(model))


def test_a_window_of_its_own_counts_collects_unless_told_the_step() -> None:
    window, tensor = Window(3), torch.zeros(2)
    for _ in range(2):
        window.collect([tensor])
    window.collect([tensor], step=50)
    window.collect([tensor])
    assert window.rings[0].newest_steps() == [2, 50, 51]


WRONG: dict[str, tuple[Weights | Any, str]] = {
    "a name": ("1_sqrt", "uniform, linear, .*'1_sqrt': No such file"),
    "no half-life": ("ema", "in steps, such as ema:500: 'ema'"),
    "a half-life": ("ema:-3", "'ema:-3'"),
    "another number": ([1, 1], "3 weights from 0 on.*: .1.0, 1.0"),
    "negative": ([1, -1, 1], "3 weights from 0 on"),
    "not a number": ([1, math.nan, 1], "nan"),
    "nothing": ([0, 0, 0], "above 0"),
    "a function's": (lambda steps: [1.0], "3 weights"),
    "of another type": (7, "uniform, linear, .*: 7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(name: str) -> None:
    weights, message = WRONG[name]
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=2)
    train(model, opt, 7)
    before = everything(model, opt)
    with pytest.raises(ValueError, match=message):
        opt.averaged_state_dict(model, weights=weights)
    with pytest.raises(ValueError, match=message), opt.averaged(weights=weights):
        pass
    with pytest.raises(ValueError, match=message):
        opt.restart_from_average(weights=weights)
    assert same(before, everything(model, opt))


def test_snapshots_of_one_step_have_no_decay_between_them() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), every="manual")
    for _ in range(3):
        opt.collect()
    with pytest.raises(ValueError, match="not ascending: 0, 0, 0"):
        opt.averaged_state_dict(model, weights="linear")
    # One of several may be collected twice: the steps next to it count once.
    assert sum(weighing("1-sqrt")([5, 9, 9, 12])) == pytest.approx(1)


# Files of weights


def written(folder: Path, *lines: str) -> str:
    path = folder / "weights.csv"
    path.write_text("\n".join(lines))
    return str(path)


def test_a_file_holds_weights_in_order_or_by_step(tmp_path: Path) -> None:
    assert weighing(written(tmp_path, "1", "", "0.5"))([7, 9]) == [1.0, 0.5]
    table = written(tmp_path, "step, weight", "200,3", "100,1", "300,0")
    assert weighing(table)([100, 200]) == [1.0, 3.0]
    assert weighing(Path(table))([300, 200]) == [0.0, 3.0]


def test_a_file_holds_the_decay_of_a_rate(tmp_path: Path) -> None:
    # A warm-up that is over, a stable phase and a decay, of which the snapshots see the last two.
    path = written(tmp_path, "step,factor", "0,0", "10,1", "100,1", "200,0")
    steps = [50, 90, 130, 170]
    # The factors at 70, 110 and 150 are 1, 0.9 and 0.5.
    assert weighing(path)(steps) == pytest.approx([0.0, 0.1, 0.4, 0.5])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["step,weight", "100,1"], "no weight for the snapshot of step 200"),
        (["step,factor", "100,1", "120,0"], "of steps 100 to 120, and 150 is asked for"),
        (["step,factor", "100,2", "200,1"], "2 weights from 0 on"),  # above the peak
        (["step,weight", "100,1", "100,2"], "a step twice"),
        (["step,weight"], "wrong number"),
        (["step,rate", "100,1"], "one weight a line, or rows under a header"),
        (["1,2"], "wrong number of columns"),
        ([""], "wrong number"),
        (["1"], "2 weights"),
        (["-1", "2"], "from 0 on"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighing(written(tmp_path, *lines))([100, 200])
