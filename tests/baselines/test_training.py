"""The training loop keeps to its budget and its schedule, and is repeatable."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.methods.names import find
from baselines.training.results import Run
from tests.support.trainings import COSTS, METHODS, WORKLOAD, follow
from timing import POLICIES


@pytest.mark.slow
def test_points_say_which_weights_they_are_of() -> None:
    runs = {run.method: run for run in follow("constant", "ema", "swa", "lawa").runs}
    weights = {name: [point.weights for point in run.points] for name, run in runs.items()}
    assert set(weights["constant"]) == {"live"}
    assert set(weights["ema"]) == {"averaged"}
    # Before its first snapshot there is nothing else to show.
    live = weights["swa"].count("live")
    assert weights["swa"] == ["live"] * live + ["averaged"] * (5 - live)
    assert 3 <= live < 5
    assert weights["lawa"] == ["averaged"] * 5


def run(method: str, budget: float = 0.5, **other) -> Run:
    (result,) = follow(method, budget=budget, **other).runs
    return result


@functools.cache
def plain(method: str) -> Run:
    """The training of one method that several tests look at."""
    return run(method)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.floats(0.1, 0.4),
    st.fixed_dictionaries({name: st.floats(1e-4, 0.03) for name in COSTS}),
)
def test_the_account_is_within_a_step_of_the_budget(method, budget, costs) -> None:
    result = run(method, budget, costs={**costs, "train_step": 0.01 + costs["train_step"]})
    charged = math.fsum(line["seconds"] for line in result.account if line["charged"])
    assert charged == pytest.approx(result.rst_seconds)
    assert result.rst_seconds <= budget
    assert budget - result.rst_seconds < result.step_seconds


def test_the_account_counts_what_ran() -> None:
    result = plain("lawa")
    counts = result.counts
    assert counts["train_step"] == counts["load_data"] == result.steps
    assert counts["collect"] == result.steps // 4
    assert counts["evaluate"] == len(result.points) == 5
    # The first point comes after the first snapshot here.
    assert counts["average"] == 5
    assert counts.keys() == {"load_data", "train_step", "collect", "evaluate", "average"}
    free = {line["operation"] for line in result.account if not line["charged"]}
    assert free == {"load_data", "evaluate"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_decides_what_the_budget_pays(policy) -> None:
    costs = {**COSTS, "evaluate": 0.05}
    result = run("lawa", 0.6, policy=policy, costs=costs)
    unpaid = {
        "algoperf": {"load_data", "evaluate"},
        "ntng": {"load_data", "evaluate", "average"},
        "mlperf": set(),
    }
    paid = {name: times for name, times in result.counts.items() if name not in unpaid[policy]}
    assert math.fsum(costs[name] * times for name, times in paid.items()) == pytest.approx(
        result.rst_seconds
    )
    assert result.rst_seconds == result.totals[policy] <= 0.6
    # The evaluation that ends a run is set aside for, and an early one may be left out for it.
    spare = 2 * costs["evaluate"] if policy == "mlperf" else 0.0
    assert 0.6 - result.rst_seconds < result.step_seconds + spare
    assert result.totals["ntng"] < result.totals["algoperf"] < result.totals["mlperf"]


def test_the_value_at_a_time_is_the_latest_by_then() -> None:
    result = plain("constant")
    for earlier, later in itertools.pairwise(result.points):
        assert result.value_at(earlier.rst_seconds) == earlier.value
        assert result.value_at((earlier.rst_seconds + later.rst_seconds) / 2) == earlier.value
    assert result.value_at(result.points[0].rst_seconds / 2) == math.inf


@pytest.mark.slow
def test_swa_is_charged_for_its_statistics_once_it_averages() -> None:
    counts = {line["operation"]: line["times"] for line in run("swa", 1.0).account}
    # Points at 20, 40 and 60% read live weights; those at 80% and the end an average.
    assert counts["statistics"] == 2
    assert counts["swa_update"] >= 2


def test_an_extra_operation_costs_steps() -> None:
    assert run("ema").steps < plain("constant").steps


@pytest.mark.slow
def test_points_lie_on_one_grid() -> None:
    for method in METHODS:
        result = run(method, 1.0, evaluations=10)
        for index, point in enumerate(result.points[:-1], start=1):
            most = result.step_seconds + COSTS["average"] + COSTS["statistics"]
            assert index * 0.1 - 1e-9 <= point.rst_seconds < index * 0.1 + most
        assert len(result.points) == 10


def test_the_rate_follows_the_fraction_of_the_budget_spent() -> None:
    for point in run("decayed").points:
        assert point.learning_rate == pytest.approx(0.05 * (1 - point.rst_seconds / 0.5))
    assert {point.learning_rate for point in plain("constant").points} == {0.05}


@pytest.mark.slow
def test_runs_repeat_to_the_last_digit_and_seeds_differ() -> None:
    for method in METHODS:
        first = run(method, 0.2)
        torch.rand(7)  # what came before a run must not matter
        assert first == run(method, 0.2)
        assert run(method, 0.2, seed=1).final != first.final


@pytest.mark.slow
def test_methods_that_share_a_training_end_as_if_each_had_trained_alone() -> None:
    names = [name for name in METHODS if find(name).shares_training]
    assert len(names) >= 4
    together = follow(*names, budget=1.0)
    assert together.runs == tuple(run(name, 1.0) for name in names)
    assert len({result.steps for result in together.runs}) > 1


def test_a_shared_step_is_paid_once_by_the_training() -> None:
    together = follow("constant", "ema")
    steps = max(result.steps for result in together.runs)
    updates = together.runs[1].steps
    naive = steps * (COSTS["load_data"] + COSTS["train_step"])
    naive += updates * COSTS["ema_update"]
    assert together.rst_seconds == pytest.approx(naive)
    assert together.measured_seconds > 0


def test_rates_that_depend_on_what_is_spent_are_not_shared() -> None:
    with pytest.raises(ValueError, match="decayed, lawa-decayed cannot follow one training"):
        follow("decayed", "lawa-decayed")
    with pytest.raises(ValueError, match="constant, decayed cannot follow one training"):
        follow("constant", "decayed")


@pytest.mark.slow
def test_reading_an_average_does_not_change_the_live_run() -> None:
    costs = {**COSTS, "collect": 1e-12, "average": 1e-12}
    live, averaged = run("constant", costs=costs), run("lawa", costs=costs)
    # At the end, what averaging cost may have cost a step.
    assert [p.train_loss for p in live.points[:-1]] == [p.train_loss for p in averaged.points[:-1]]
    assert [p.value for p in live.points[:-1]] != [p.value for p in averaged.points[:-1]]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_says_when() -> None:
    steps = 0

    def poisoned(model, batch):
        nonlocal steps
        steps += 1
        return WORKLOAD.loss(model, batch) * (math.nan if steps == 20 else 1.0)

    result = run("constant", workload=dataclasses.replace(WORKLOAD, loss=poisoned))
    assert result.failure is not None
    assert "no finite number at step 2" in result.failure
    assert "lower the rate" in result.failure
    assert result.final == math.inf
    assert result.steps < plain("constant").steps


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"does not pay for one step and one evaluation \(0\.0127 s\)"
    ):
        run("lawa", 0.0126)


def test_an_operation_without_a_cost_is_refused() -> None:
    with pytest.raises(KeyError, match="'collect' has no cost"):
        run("lawa", costs={"load_data": 1e-4, "train_step": 0.01, "average": 0.1, "evaluate": 1.0})


def test_rst_to_a_target() -> None:
    result = plain("constant")
    badness = WORKLOAD.badness
    assert result.rst_to(result.points[2].value, badness) <= result.points[2].rst_seconds
    assert result.rst_to(1e9, badness) == result.points[0].rst_seconds
    assert result.rst_to(0.0, badness) == math.inf
    for none in (math.inf, -math.inf, math.nan):
        assert result.rst_to(none, badness) == math.inf


@pytest.mark.gpu
def test_measured_seconds_have_all_that_was_launched_before_an_evaluation() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    out = torch.empty_like(matrix)
    events = []

    def loss(model, batch):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(20):
            torch.mm(matrix, matrix, out=out)
        last.record()
        events.append((first, last))
        return model.weight.square().sum()

    workload = dataclasses.replace(
        WORKLOAD,
        make_model=lambda: torch.nn.Linear(3, 1, device="cuda"),
        loss=loss,
        # It waits for nothing, as an evaluation on the CPU may not.
        evaluate=lambda model: 1.0,
        evaluate_test=lambda model: 1.0,
        bn_batches=(),
    )
    # The first steps of all are slow.
    follow("constant", workload=workload, budget=0.1)
    events.clear()
    measured_seconds = follow("constant", workload=workload, budget=0.1).measured_seconds
    torch.cuda.synchronize()
    taken_seconds = sum(first.elapsed_time(last) for first, last in events) / 1e3
    assert taken_seconds <= measured_seconds * 1.01
