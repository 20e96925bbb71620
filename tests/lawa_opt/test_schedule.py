"""After which steps a snapshot is taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import same, small_model, train, weights_of


def collected(steps: int, **options: Any) -> list[int]:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **options)
    return [opt.schedule.steps for _ in range(steps) if takes_snapshot(opt)]


def takes_snapshot(opt: LAWA) -> bool:
    newest = opt.schedule.last_collect
    opt.step()
    return opt.schedule.last_collect > newest


@settings(deadline=None)  # the first example waits for torch's imports
@given(every=st.integers(1, 40), start=st.integers(1, 60), steps=st.integers(0, 100))
def test_every_so_many_steps_from_the_start_step_on(every: int, start: int, steps: int) -> None:
    due = [step for step in range(1, steps + 1) if step % every == 0 and step >= start]
    assert collected(steps, every=every, start=start) == due


@pytest.mark.parametrize(("k", "horizon"), [(5, 0.1), (5, 0.5), (1, 0.25), (16, 1.0)])
def test_auto_spans_the_latest_share_of_training_at_a_falling_cost(k: int, horizon: float) -> None:
    steps = 10_000
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), k=k, every="auto", horizon=horizon)
    due: list[int] = []
    for step in range(1, steps + 1):
        if opt.schedule.step():
            due.append(step)
            opt.schedule.last_collect = step
        if step > 20 * k / horizon:  # the k latest are k - 1 to k gaps of horizon * step / k back
            reach = (step - due[-k]) / step
            assert 1 - (1 - horizon / k) ** (k - 1) <= reach + 0.01
            assert reach - 0.05 * horizon <= 1 - (1 - horizon / k) ** k
    assert len(due) == pytest.approx(k / horizon * (1 + math.log(horizon * steps / k)), rel=0.25)


def test_manual_collects_when_told_and_only_then() -> None:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), k=3, every="manual")
    for _ in range(4):
        opt.step()
    assert opt.num_snapshots == 0
    opt.collect()
    assert (opt.num_snapshots, opt.schedule.last_collect) == (1, 4)


def test_nothing_from_before_the_start_enters_the_window() -> None:
    weight = nn.Parameter(torch.zeros(1))
    opt = LAWA(torch.optim.SGD([weight], lr=1.0), k=5, every=1, start=4)
    for _ in range(5):
        weight.grad = -torch.ones(1)
        opt.step()
    with opt.averaged():
        assert weight.item() == 4.5


def test_switched_off_and_on() -> None:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), k=9, every=2)
    due = []
    for step in range(1, 13):
        opt.enabled = not 4 <= step <= 8
        due += [step] if takes_snapshot(opt) else []
    assert due == [2, 10, 12]
    assert opt.num_snapshots == 3
    opt.schedule.every = 5
    assert [step for step in range(13, 21) if takes_snapshot(opt)] == [15, 20]


def test_settings_changed_later_count_from_the_next_step() -> None:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), every="manual")
    schedule = opt.schedule
    assert not any(takes_snapshot(opt) for _ in range(10))
    schedule.every, schedule.start = 2, 15
    assert [step for step in range(11, 20) if takes_snapshot(opt)] == [16, 18]
    schedule.every, schedule.start, schedule.horizon = "auto", 1, 1.0
    assert (schedule.every, schedule.start, schedule.horizon) == ("auto", 1, 1.0)
    # k=5 snapshots spread over all steps so far: 5 * (step - 18) >= step first holds at 23.
    assert [step for step in range(20, 29) if takes_snapshot(opt)] == [23]


BAD_SETTINGS = [
    ("every", 0, 'every must be a whole number of steps from 1, "auto" or "manual": 0'),
    ("every", True, "every must be .*: True"),
    ("every", 1.5, "every must be .*: 1.5"),
    ("every", "epoch", "every must be .*: 'epoch'"),
    ("horizon", 0.0, r"horizon must be a share of training in \(0, 1\]: 0.0"),
    ("horizon", 1.1, "horizon must be .*: 1.1"),
    ("horizon", math.nan, "horizon must be .*: nan"),
    ("horizon", "0.1", "horizon must be .*: '0.1'"),
    ("start", 0, "start must be a step from 1 on: 0"),
    ("start", 2.0, "start must be .*: 2.0"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_SETTINGS)
def test_bad_arguments_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [*BAD_SETTINGS, ("enabled", "no", "enabled must be True or False: 'no'")],
)
def test_bad_values_set_later_are_refused_and_change_nothing(
    name: str, value: Any, message: str
) -> None:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), every=3)
    opt.step()
    before = dict(vars(opt.schedule))
    with pytest.raises(ValueError, match=message):
        setattr(opt.schedule, name, value)
    assert vars(opt.schedule) == before
    assert [step for step in range(2, 8) if takes_snapshot(opt)] == [3, 6]


def test_k_cannot_be_changed_since_the_window_has_its_slots() -> None:
    opt = LAWA(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), k=3)
    with pytest.raises(AttributeError, match=r"k cannot be set to 9: the window has 3 slots"):
        opt.schedule.k = 9
    assert (opt.schedule.k, opt.window.k) == (3, 3)


@pytest.mark.parametrize("restart_every", [4, 6])
def test_restarts_on_a_schedule_are_those_by_hand(restart_every: int) -> None:
    by_hand, model = small_model(), small_model()
    opt = LAWA(torch.optim.AdamW(by_hand.parameters(), lr=0.01), k=3, every=2)
    for step in range(1, 14):
        train(by_hand, opt, range(step, step + 1))
        if step % restart_every == 0:
            opt.restart_from_average()
    restarted = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, LAWA(restarted, k=3, every=2, restart_every=restart_every), range(1, 14))
    assert same(weights_of(by_hand), weights_of(model))


def test_there_is_no_restart_without_snapshots_or_while_switched_off() -> None:
    plain, model = small_model(), small_model()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), 6)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = LAWA(base, k=3, every=1, start=5, restart_every=4)
    train(model, opt, 5)
    opt.enabled = False
    train(model, opt, range(5, 6))
    assert same(weights_of(plain), weights_of(model))
    opt.schedule.restart_every = 1
    assert not opt.schedule.is_restart()
    opt.enabled = True
    train(model, opt, range(6, 8))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), range(6, 8))
    assert not same(weights_of(plain), weights_of(model))
    for wrong in (0, True, 2.5, "epoch"):
        with pytest.raises(ValueError, match="restart_every must be a whole number of steps"):
            LAWA(base, restart_every=wrong)  # type: ignore[arg-type]
