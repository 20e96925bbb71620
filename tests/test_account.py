"""The account and the budget, against exact arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timing import Account, Budget, parse_seconds
from timing.schedules import constant, linear

COSTS = {"train_step": 0.01, "collect": 0.001, "average": 0.003, "evaluate": 5.0}


@given(st.lists(st.sampled_from(sorted(COSTS)), max_size=300), st.randoms())
def test_rst_is_the_exact_sum_whatever_the_order(operations, random) -> None:
    account, shuffled = Account(COSTS), Account(COSTS)
    for operation in operations:
        account.charge(operation)
    again = list(operations)
    random.shuffle(again)
    for operation in again:
        shuffled.charge(operation)
    naive = sum(Fraction(COSTS[name]) for name in operations if name != "evaluate")
    assert account.rst_seconds == pytest.approx(float(naive), rel=1e-15, abs=0)
    assert account.rst_seconds == shuffled.rst_seconds


def test_evaluation_is_counted_and_not_charged() -> None:
    account = Account(COSTS)
    account.charge("evaluate", 3)
    assert account.rst_seconds == 0
    (line,) = account.lines()
    assert line == {
        "operation": "evaluate",
        "times": 3,
        "seconds_each": 5.0,
        "seconds": 15.0,
        "charged": False,
    }


def test_an_operation_without_a_cost_is_never_free() -> None:
    account = Account(COSTS)
    with pytest.raises(KeyError, match=r"'swap' has no cost .*known: average, collect"):
        account.charge("swap")
    assert account.counts == {}


def test_budget() -> None:
    account, budget = Account(COSTS), Budget(0.04)
    account.charge("train_step", 3)
    assert budget.left(account) == pytest.approx(0.01)
    assert budget.spent(account) == pytest.approx(0.75)
    account.charge("train_step", 3)
    assert budget.spent(account) == 1.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_is_positive_and_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        Budget(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2 min", 120), ("6h", 21600), ("1d", 86400)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-3s", "0", "3 weeks", "1e9", "nan", "1.2.3"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"no length of time such as 90s"):
        parse_seconds(text)


@given(st.floats(-1, 3))
def test_schedules_stay_between_peak_and_zero(fraction: float) -> None:
    assert constant(fraction) == 1.0
    assert 0.0 <= linear(fraction) <= 1.0
    assert linear(fraction) == max(0.0, min(1.0, 1 - fraction))
