"""Learning rates over a budget, against their formulas and with a real scheduler."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from timing import Account, Budget
from timing.rst.schedules import (
    Schedule,
    constant,
    cosine,
    linear,
    one_minus_sqrt,
    warm_up,
    warm_up_stable_decay,
)

SCHEDULES = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_minus_sqrt": one_minus_sqrt,
    "warm_up": warm_up(cosine, 0.2),
    "warm_up_stable_decay": warm_up_stable_decay(0.1, 0.25, one_minus_sqrt),
}
NAIVE = {
    "constant": lambda x: 1,
    "linear": lambda x: 1 - x,
    "cosine": lambda x: math.cos(math.pi * x / 2) ** 2,
    "one_minus_sqrt": lambda x: 1 - x**0.5,
    "warm_up": lambda x: x / 0.2 if x < 0.2 else math.cos(math.pi * (x - 0.2) / 1.6) ** 2,
    "warm_up_stable_decay": lambda x: (
        x / 0.1 if x < 0.1 else 1 if x <= 0.75 else 1 - ((x - 0.75) / 0.25) ** 0.5
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@given(fraction=st.floats(0, 1))
def test_each_follows_its_formula(name: str, fraction: float) -> None:
    assert SCHEDULES[name](fraction) == pytest.approx(NAIVE[name](fraction), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@given(beyond=st.floats(0, 1e6))
def test_beyond_the_ends_the_rate_stays(name: str, beyond: float) -> None:
    schedule = SCHEDULES[name]
    assert schedule(-beyond) == schedule(0.0)
    assert schedule(1 + beyond) == schedule(1.0)
    assert 0 <= schedule(1.0) <= schedule(0.5) <= 1
    assert schedule(1.0) == (1.0 if name == "constant" else pytest.approx(0.0, abs=1e-15))


def test_without_a_warm_up_or_a_decay_there_is_none() -> None:
    for fraction in (0.0, 0.3, 1.0):
        assert warm_up(linear, 0)(fraction) == linear(fraction)
        assert warm_up_stable_decay(0, 0)(fraction) == 1.0
    assert warm_up_stable_decay(0.5, 0.5)(0.5) == 1.0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_outside_the_budget_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"a warm-up takes a fraction of the budget in \[0, 1\)"):
        warm_up(linear, fraction)
    with pytest.raises(ValueError, match=r"a warm-up takes a fraction of the budget in \[0, 1\)"):
        warm_up_stable_decay(fraction, 0.1)
    with pytest.raises(ValueError, match=r"a decay takes a fraction of the budget in \[0, 1\)"):
        warm_up_stable_decay(0.1, fraction)
    with pytest.raises(ValueError, match=r"a warm-up of 0\.6 and a decay of 0\.5 are"):
        warm_up_stable_decay(0.6, 0.5)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_a_real_scheduler_is_that_of_what_was_spent(name: str, make) -> None:
    rates = {}
    for collects_a_step in (0, 2):
        account = Account({"train_step": 0.03, "collect": 0.01, "evaluate": 9.0})
        budget, schedule = Budget(1.0), SCHEDULES[name]
        optimizer, scheduler = scheduled(make, schedule, budget, account)
        while budget.spent(account) < 1:
            assert optimizer.param_groups[0]["lr"] == 0.5 * schedule(budget.spent(account))
            rates[budget.spent(account), collects_a_step] = scheduler.get_last_lr()[0]
            optimizer.step()
            account.charge("train_step")
            account.charge("evaluate")
            account.charge("collect", collects_a_step)
            scheduler.step()
    # The two runs took other numbers of steps; where they had spent alike, they had one rate.
    both = {spent for spent, collects in rates if collects} & {
        spent for spent, collects in rates if not collects
    }
    assert len(both) > 5
    assert all(rates[spent, 0] == rates[spent, 2] for spent in both)


def scheduled(
    make, schedule: Schedule, budget: Budget, account: Account
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = make([parameter], lr=0.5)
    return optimizer, LambdaLR(optimizer, lambda _: schedule(budget.spent(account)))
