"""The averagers of the comparison, against slow and obvious twins in float64."""

import copy
import itertools

import pytest
import torch

from baselines.averagers import (
    EMA_DECAY,
    SWA_EVERY,
    Averager,
    Ema,
    Lawa,
    Live,
    Swa,
    fixed_decay,
    growing_half_life,
)
from baselines.training import training_step
from baselines.workloads import digits
from baselines.workloads.workload import Workload

STEPS = 25


@pytest.fixture(scope="module")
def workload() -> Workload:
    return digits.load()


def follow(
    workload: Workload, make, spent=lambda step: step / STEPS
) -> tuple[Averager, list[dict[str, torch.Tensor]], list[str | None]]:
    """Train under an averager; gives it, the live state after each step, and what it did."""
    torch.manual_seed(0)
    model = workload.make_model().train()
    averager = make(model, workload.make_optimizer(model, 0.05))
    history, operations = [], []
    for step, batch in enumerate(itertools.islice(workload.batches(0), STEPS), start=1):
        training_step(workload, model, averager.optimizer, batch)
        operations.append(averager.after_step(spent(step)))
        history.append(copy.deepcopy(model.state_dict()))
    return averager, history, operations


def reported(averager: Averager) -> dict[str, torch.Tensor]:
    with averager.reading()[0] as model:
        return copy.deepcopy(model.state_dict())


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].double(), b[name].double(), rtol=1e-5, atol=1e-6)


def test_no_averager_changes_the_training(workload: Workload) -> None:
    _, plain, _ = follow(workload, Live)
    for make in (
        Ema,
        lambda model, opt: Lawa(model, opt, 3, 4),
        lambda model, opt: Swa(model, opt, workload.statistics_batches),
    ):
        _, history, _ = follow(workload, make)
        for state, expected in zip(history, plain, strict=True):
            assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_live_is_live(workload: Workload) -> None:
    averager, history, operations = follow(workload, Live)
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.reading()[1] == {}


def test_lawa(workload: Workload) -> None:
    averager, history, operations = follow(workload, lambda m, o: Lawa(m, o, 3, 4))
    assert [step for step, name in enumerate(operations, 1) if name == "collect"] == [
        *range(4, STEPS + 1, 4)
    ]
    snapshots = [history[step - 1] for step in (16, 20, 24)]
    naive = {
        name: sum(s[name].double() for s in snapshots) / 3
        if history[0][name].is_floating_point()
        else snapshots[-1][name]
        for name in history[0]
    }
    close(reported(averager), naive)
    assert averager.reading()[1] == {"average": 1}


def test_lawa_reads_the_live_weights_for_nothing_until_it_has_collected(workload: Workload) -> None:
    averager, history, operations = follow(workload, lambda m, o: Lawa(m, o, 3, STEPS + 1))
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.reading()[1] == {}


@pytest.mark.parametrize("decay_at", [fixed_decay, growing_half_life])
def test_ema(workload: Workload, decay_at) -> None:
    averager, history, operations = follow(workload, lambda m, o: Ema(m, o, decay_at))
    assert set(operations) == {"ema_update"}
    naive = {name: value.double() for name, value in history[0].items()}
    for update, state in enumerate(history[1:], start=1):
        decay = decay_at(update)
        for name, value in state.items():
            if value.is_floating_point():
                naive[name] = decay * naive[name] + (1 - decay) * value.double()
            else:
                naive[name] = value
    close(reported(averager), naive)


def test_the_decays() -> None:
    assert [fixed_decay(t) for t in (1, 10**6)] == [2 / 11, EMA_DECAY]
    # What a snapshot weighs has halved when a twentieth of the steps so far has passed.
    for t in (1_000, 50_000):
        weight = 1.0
        for step in range(t, t + t // 20):
            weight *= growing_half_life(step)
        assert weight == pytest.approx(0.5, rel=0.03)


def test_swa_averages_the_last_quarter_and_recomputes_the_statistics(workload: Workload) -> None:
    averager, history, operations = follow(
        workload,
        lambda m, o: Swa(m, o, workload.statistics_batches),
        lambda s: 0.5 + s / (2 * STEPS),
    )
    start = next(step for step in range(1, STEPS + 1) if 0.5 + step / (2 * STEPS) >= 0.75)
    taken = list(range(start, STEPS + 1, SWA_EVERY))
    assert [step for step, name in enumerate(operations, 1) if name == "swa_update"] == taken
    assert len(taken) > 1
    state = reported(averager)
    assert averager.reading()[1] == {"statistics": 1}
    for name, value in state.items():
        if "running" not in name and "tracked" not in name:
            naive = sum(history[step - 1][name].double() for step in taken) / len(taken)
            torch.testing.assert_close(value.double(), naive, rtol=1e-5, atol=1e-6)
    # The first BatchNorm's statistics are those of what the averaged convolution puts out.
    images = torch.cat(list(workload.statistics_batches))
    convolved = torch.nn.functional.conv2d(images.double(), state["0.weight"].double(), padding=1)
    torch.testing.assert_close(
        state["1.running_mean"].double(), convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_swa_before_its_start_reads_the_live_weights_for_nothing(workload: Workload) -> None:
    averager, history, operations = follow(
        workload, lambda m, o: Swa(m, o, workload.statistics_batches), lambda _: 0.5
    )
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.reading()[1] == {}
