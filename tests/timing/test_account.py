"""The account and the budget, against exact arithmetic."""

import json
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timing import Account, Budget, parse_seconds
from timing.rst.policy import POLICIES, UNCHARGED

COSTS = {"train_step": 0.01, "collect": 0.001, "average": 0.003, "evaluate": 5.0, "load_data": 0.1}

costs_of_all = st.fixed_dictionaries(dict.fromkeys(COSTS, st.floats(1e-12, 1e4)))
operations_run = st.lists(st.sampled_from(sorted(COSTS)), max_size=300)


def naive_seconds(costs, operations, policy) -> float:
    """Each operation in turn, in whole femtoseconds; the one rounding to a float comes last."""
    total = Fraction(0)
    for operation in operations:
        if operation not in UNCHARGED[policy]:
            total += Fraction(round(Fraction(costs[operation]) * 10**15), 10**15)
    return float(total)


@given(costs_of_all, operations_run, st.sampled_from(POLICIES), st.randoms())
def test_rst_is_the_exact_sum_whatever_the_order(costs, operations, policy, random) -> None:
    account, shuffled = Account(costs, policy), Account(costs, policy)
    for operation in operations:
        account.charge(operation)
    again = list(operations)
    random.shuffle(again)
    for operation in again:
        shuffled.charge(operation)
    assert account.rst_seconds == naive_seconds(costs, operations, policy)
    assert account.rst_seconds == shuffled.rst_seconds
    assert account.rst_seconds == account.cost(account.counts)
    assert account.totals() == {name: naive_seconds(costs, operations, name) for name in POLICIES}


def test_a_billion_steps_lose_nothing() -> None:
    account = Account({"train_step": 0.1})
    account.charge("train_step", 10**9)
    account.charge("train_step")
    assert account.rst_seconds == 100_000_000.1


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


def test_policies_differ_in_what_they_charge() -> None:
    costs = dict.fromkeys(
        ("train_step", "collect", "ema_update", "average", "statistics", "evaluate", "my_own"), 1.0
    )
    account = Account(costs)
    for times, operation in enumerate(costs):
        account.charge(operation, 10**times)
    assert account.totals() == {"algoperf": 1011111, "ntng": 1000111, "mlperf": 1111111}
    assert [Account(costs, policy).cost({"my_own": 1}) for policy in POLICIES] == [1.0, 1.0, 1.0]


def test_there_is_no_other_policy() -> None:
    with pytest.raises(ValueError, match="'free' is no policy: choose one of algoperf, ntng, mlp"):
        Account(COSTS, "free")  # type: ignore[arg-type]


def test_an_operation_without_a_cost_is_never_free() -> None:
    account = Account(COSTS)
    for policy in POLICIES:
        with pytest.raises(KeyError, match=r"'swap' has no cost .*known: average, collect"):
            Account(COSTS, policy).cost({"train_step": 1, "swap": 1})
    with pytest.raises(KeyError, match=r"'swap' has no cost .*known: average, collect"):
        account.charge("swap")
    assert account.counts == {}


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-16, float("inf"), float("nan")])
def test_a_cost_is_positive_and_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="the cost of 'swap' is not a positive, finite number"):
        Account({**COSTS, "swap": seconds})


@pytest.mark.parametrize("times", [-1, 0.5])
def test_only_whole_numbers_are_charged(times) -> None:
    account = Account(COSTS)
    with pytest.raises(ValueError, match=f"'train_step' cannot run {times} times"):
        account.charge("train_step", times)
    assert account.counts == {}


def test_the_counts_cannot_be_changed_behind_the_account() -> None:
    account = Account(COSTS)
    account.charge("train_step")
    account.counts["train_step"] = 0
    assert account.counts == {"train_step": 1}


@given(costs_of_all, operations_run, operations_run)
def test_a_resumed_account_is_the_uninterrupted_one(costs, before, after) -> None:
    whole, first, resumed = Account(costs), Account(costs), Account(costs)
    for operation in before:
        whole.charge(operation)
        first.charge(operation)
    # As a checkpoint keeps it; what was charged since is forgotten.
    resumed.charge("train_step", 7)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for operation in after:
        whole.charge(operation)
        resumed.charge(operation)
    assert resumed.rst_seconds == whole.rst_seconds
    assert resumed.lines() == whole.lines()
    assert resumed.state_dict() == whole.state_dict()


def saved() -> dict:
    account = Account(COSTS)
    account.charge("train_step", 5)
    return account.state_dict()


@pytest.mark.parametrize(
    ("account", "change", "message"),
    [
        (Account({**COSTS, "collect": 0.0010001}), {}, "charged by other costs"),
        (Account({**COSTS, "swap": 1.0}), {}, "charged by other costs"),
        (Account(COSTS, "mlperf"), {}, "charged with policy 'algoperf', this one has 'mlperf'"),
        (Account(COSTS), {"uncharged": ["evaluate"]}, r"uncharged \['evaluate'\], this one has"),
        (Account(COSTS, shares={"swap": 0}), {}, r"shares \{\}, this one has \{'swap': 0\}"),
        (Account(COSTS), {"counts": {"train_step": -5}}, "damaged: 'train_step' ran -5 times"),
        (Account(COSTS), {"counts": {"swap": 5}}, "damaged: 'swap' ran 5 times"),
        (Account(COSTS), {"counts": {"train_step": 1.5}}, "damaged: 'train_step' ran 1.5 times"),
        (Account(COSTS), {"more": 1}, "no saved account: it has counts, .*more where"),
    ],
)
def test_a_foreign_account_is_refused_and_nothing_changes(account, change, message) -> None:
    account.charge("collect", 3)
    before = account.state_dict(), account.rst_seconds
    with pytest.raises(ValueError, match=message):
        account.load_state_dict({**saved(), **change})
    assert (account.state_dict(), account.rst_seconds) == before


def test_budget() -> None:
    account, budget = Account(COSTS), Budget(0.04)
    account.charge("train_step", 3)
    assert budget.spent(account) == 0.75
    account.charge("train_step", 3)
    assert budget.spent(account) == 1.0


@given(st.floats(1e-4, 0.1), st.floats(1e-4, 0.1), st.floats(0.2, 2.0))
def test_a_run_stops_before_the_step_that_would_exceed_its_budget(step, collect, seconds) -> None:
    account, budget = Account({"train_step": step, "collect": collect}), Budget(seconds)
    operations = {"train_step": 1, "collect": 1}
    cost = account.cost_femtoseconds(operations)
    while budget.affords(account, cost):
        for operation in operations:
            account.charge(operation)
    spent, whole = account.femtoseconds, budget.femtoseconds
    assert spent <= whole < spent + cost


def test_a_budget_is_spent_to_the_last_step() -> None:
    # In floats, ten times 0.1 added up is below 1 and 0.3 / 0.1 below 3.
    for steps in (3, 10):
        account, budget = Account({"train_step": 0.1}), Budget(steps / 10)
        cost = account.cost_femtoseconds({"train_step": 1})
        while budget.affords(account, cost):
            account.charge("train_step")
        assert account.counts == {"train_step": steps}
        assert account.femtoseconds == budget.femtoseconds
    with pytest.raises(KeyError, match="'swap' has no cost"):
        account.cost_femtoseconds({"swap": 1})


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


@given(st.floats(1e-6, 1e3), st.floats(0, 1), st.integers(0, 1000))
def test_a_share_of_an_operation_is_charged_exactly(cost: float, share: float, times: int) -> None:
    account = Account({"train_step": 0.5, "score": cost}, shares={"score": share})
    account.charge("score", times)
    account.charge("train_step", 2)
    each = round(round(Fraction(cost) * 10**15) * Fraction(share))
    assert account.femtoseconds == each * times + 10**15
    assert account.totals()["mlperf"] == account.rst_seconds
    shares = {line["operation"]: line["charged"] for line in account.lines()}
    assert shares == {"train_step": 1.0, **({"score": share} if times else {})}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="the share of 'swap' that is charged must be from 0 to 1"):
        Account(COSTS, shares={"swap": share})


@given(st.lists(st.sampled_from(["train_step", "collect", "evaluate"]), max_size=40), st.randoms())
def test_rse_is_of_the_counts_alone(ran: list[str], random: Random) -> None:
    costs = {"train_step": 0.01, "collect": 0.001, "evaluate": 0.2}
    joules = {"train_step": 5.1, "collect": 0.07, "evaluate": 33.3}
    shares = {"collect": 0.25}

    def spent(order: list[str]) -> Account:
        account = Account(costs, "algoperf", shares, joules)
        for operation in order:
            account.charge(operation)
        return account

    account = spent(ran)
    other = spent(random.sample(ran, len(ran)))
    assert account.rse_joules == other.rse_joules
    naive = 5.1 * ran.count("train_step") + 0.25 * 0.07 * ran.count("collect")
    assert account.rse_joules == pytest.approx(naive)
    assert {line["operation"]: line["joules"] for line in account.lines()} == {
        name: pytest.approx(joules[name] * ran.count(name)) for name in {*ran}
    }
    # Joules change nothing of what is saved.
    assert account.state_dict() == Account(costs, "algoperf", shares).state_dict() | {
        "counts": account.counts
    }


def test_an_account_without_joules_of_what_it_charged_has_no_rse() -> None:
    costs = {"train_step": 0.01, "evaluate": 0.2}
    assert Account(costs).rse_joules is None
    account = Account(costs, joules={"train_step": 5.0})
    assert account.rse_joules == 0
    account.charge("train_step")
    account.charge("evaluate")
    # Which is not charged.
    assert account.rse_joules == 5.0
    assert [line.get("joules") for line in account.lines()] == [None, 5.0]
    account = Account(costs, "mlperf", joules={"train_step": 5.0})
    account.charge("evaluate")
    assert account.rse_joules is None
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the joules of 'train_step' must be above zero"):
            Account(costs, joules={"train_step": wrong})
