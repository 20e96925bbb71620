"""The averagers of the comparison, against slow and obvious twins in float64."""

import copy
import dataclasses
import io
import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from baselines.methods import names
from baselines.methods.averagers import Averager
from baselines.methods.averagers.batchnorm import update_bn
from baselines.methods.averagers.ema import Ema, fixed_decay, growing_half_life
from baselines.methods.averagers.lawa import Lawa
from baselines.methods.averagers.swa import CYCLES, SWA_EVERY, CyclicSwa, Swa, cyclic_linear
from baselines.methods.names import find
from baselines.methods.recipes import training_step
from baselines.methods.recipes.schedule_free import ScheduleFreeWeights
from baselines.methods.recipes.schedule_free_optimizer import schedule_free
from baselines.workloads import digits
from baselines.workloads.base import Workload
from tests.support.small_training import same, small_model

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
STEPS = 25
EMA = partial(fixed_decay, 0.995)


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
    with averager.evaluation_model()[0] as model:
        return copy.deepcopy(model.state_dict())


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].double(), b[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_no_averager_changes_the_training(workload: Workload) -> None:
    _, plain, _ = follow(workload, Averager)
    for make in (
        lambda model, opt: Ema(model, opt, EMA),
        lambda model, opt: Lawa(model, opt, 3, 4),
        lambda model, opt: Swa(model, opt, workload.bn_batches, 0.75),
        lambda model, opt: CyclicSwa(model, opt, workload.bn_batches),
    ):
        _, history, _ = follow(workload, make)
        for state, expected in zip(history, plain, strict=True):
            assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_live_is_live(workload: Workload) -> None:
    averager, history, operations = follow(workload, Averager)
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.evaluation_model()[1] == {}


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
    assert averager.evaluation_model()[1] == {"average": 1}


def test_lawa_reads_the_live_weights_for_nothing_until_it_has_collected(workload: Workload) -> None:
    averager, history, operations = follow(workload, lambda m, o: Lawa(m, o, 3, STEPS + 1))
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.evaluation_model()[1] == {}


@pytest.mark.parametrize("decay_at", [EMA, partial(growing_half_life, 0.05)])
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


@pytest.mark.parametrize("eta", [0, 3])
def test_the_example_is_the_polynomial_mean(eta: int, workload: Workload) -> None:
    """A step weighs what the later updates leave of it (arXiv 1212.1824, section 4)."""
    part = find(f"{EXAMPLES / 'own_averager.py'}(eta={eta})").averager
    averager, history, _ = follow(workload, lambda m, o: part.begin(m, o, workload))
    shares = [(eta + 1) / (step + eta) for step in range(1, STEPS + 1)]
    weights = [share * math.prod(1 - s for s in shares[i + 1 :]) for i, share in enumerate(shares)]
    assert sum(weights) == pytest.approx(1)
    naive = {
        name: sum(w * state[name].double() for w, state in zip(weights, history, strict=True))
        if value.is_floating_point()
        else history[-1][name]
        for name, value in history[0].items()
    }
    close(reported(averager), naive)
    assert (weights[0] == pytest.approx(weights[-1])) == (eta == 0)


def test_the_decays() -> None:
    assert [fixed_decay(0.995, t) for t in (1, 10**6)] == [2 / 11, 0.995]
    # What a snapshot weighs has halved when a twentieth of the steps so far has passed.
    for t in (1_000, 50_000):
        weight = 1.0
        for step in range(t, t + t // 20):
            weight *= growing_half_life(0.05, step)
        assert weight == pytest.approx(0.5, rel=0.03)


def test_swa_averages_the_last_quarter_and_recomputes_the_statistics(workload: Workload) -> None:
    averager, history, operations = follow(
        workload,
        lambda m, o: Swa(m, o, workload.bn_batches, 0.75),
        lambda s: 0.5 + s / (2 * STEPS),
    )
    start = next(step for step in range(1, STEPS + 1) if 0.5 + step / (2 * STEPS) >= 0.75)
    taken = list(range(start, STEPS + 1, SWA_EVERY))
    assert [step for step, name in enumerate(operations, 1) if name == "swa_update"] == taken
    assert len(taken) > 1
    state = reported(averager)
    assert averager.evaluation_model()[1] == {"statistics": 1}
    for name, value in state.items():
        if "running" not in name and "tracked" not in name:
            naive = sum(history[step - 1][name].double() for step in taken) / len(taken)
            torch.testing.assert_close(value.double(), naive, rtol=1e-5, atol=1e-6)
    # The first BatchNorm's statistics are those of what the averaged convolution puts out.
    images = torch.cat(list(workload.bn_batches))
    convolved = torch.nn.functional.conv2d(images.double(), state["0.weight"].double(), padding=1)
    torch.testing.assert_close(
        state["1.running_mean"].double(), convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_swa_before_its_start_reads_the_live_weights_for_nothing(workload: Workload) -> None:
    averager, history, operations = follow(
        workload, lambda m, o: Swa(m, o, workload.bn_batches, 0.75), lambda _: 0.5
    )
    assert set(operations) == {None}
    close(reported(averager), history[-1])
    assert averager.evaluation_model()[1] == {}


def test_the_cycles_fall_from_the_peak_and_end_before_the_budget_does() -> None:
    assert {cyclic_linear(spent) for spent in (0.0, 0.3, 0.75)} == {1.0}
    for start in (0.75, 0.79, 0.83, 0.87, 0.91, 0.95):
        # A straight line, from the peak to a hundredth of it.
        rates = [cyclic_linear(start + 0.04 * share) for share in (1e-9, 0.25, 0.5, 1 - 1e-9)]
        assert rates == pytest.approx([1.0, 0.7525, 0.505, 0.01], abs=1e-6)
    after = [cyclic_linear(spent) for spent in (0.9901, 1.0, 1.3)]
    assert after == pytest.approx([0.01] * 3)


@pytest.mark.parametrize("steps", [100, 237, 5000])
def test_cyclic_swa_averages_the_ends_of_the_cycles(steps: int) -> None:
    model = nn.Linear(1, 1, bias=False)
    averager = CyclicSwa(model, torch.optim.SGD(model.parameters(), 1.0), [])
    taken = []
    for step in range(1, steps + 1):
        nn.init.constant_(model.weight, step)
        if averager.after_step(step / steps):
            taken.append(step)
    # The first step that has passed the end of each, and nothing after the last.
    naive = [next(s for s in range(steps) if s / steps >= 0.79 + 0.04 * c) for c in range(CYCLES)]
    assert taken == pytest.approx(naive, abs=1)
    assert len(taken) == CYCLES
    with averager.evaluation_model()[0] as averaged:
        assert averaged.weight.item() == pytest.approx(sum(taken) / len(taken), rel=1e-6)


def test_recomputing_statistics_draws_no_random_numbers_of_the_training() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).eval()
    before = torch.get_rng_state()
    update_bn(model, [torch.ones(8, 4)])
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert int(model[2].num_batches_tracked) == 1


BETA = 0.8


def free(model: nn.Module, optimizer: torch.optim.Optimizer, batches) -> ScheduleFreeWeights:
    package = schedule_free(optimizer, BETA)
    package.train()
    return ScheduleFreeWeights(model, package, batches)


# The workload's optimizer, and one whose step is that of the fast weights z: without what beta
# replaces, and without the weight decay that is computed at y.
BASES = {
    "sgd": (
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        torch.optim.SGD,
        0.1,
    ),
    "adamw": (
        partial(torch.optim.AdamW, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1),
        partial(torch.optim.AdamW, betas=(0.0, 0.95), eps=1e-6, weight_decay=0.0),
        0.1,
    ),
    "adam without decay": (
        torch.optim.Adam,
        partial(torch.optim.Adam, betas=(0.0, 0.999)),
        0.0,
    ),
    "adam with decay": (
        partial(torch.optim.Adam, weight_decay=0.1),
        partial(torch.optim.Adam, weight_decay=0.1),
        0.0,
    ),
    "amsgrad": (
        partial(torch.optim.AdamW, amsgrad=True),
        partial(torch.optim.AdamW, amsgrad=True),
        0.0,
    ),
    "rmsprop": (
        partial(torch.optim.RMSprop, momentum=0.5),
        partial(torch.optim.RMSprop, momentum=0.5),
        0.0,
    ),
}


def warmed_up(step: int) -> float:
    return min(1.0, step / 4)


@pytest.mark.parametrize("base", BASES)
def test_schedule_free_is_that_of_the_paper(base: str) -> None:
    """Section 2 of arXiv 2405.15682, written out: z and x apart, y made of them at each step."""
    make, make_fast, decay_at_y = BASES[base]
    model = small_model().double()
    averager = free(model, make(model.parameters(), lr=0.05), [])
    schedule = LambdaLR(averager.optimizer, warmed_up)
    y = copy.deepcopy(model)
    z = [p.detach().clone().requires_grad_() for p in y.parameters()]
    x = [p.detach().clone() for p in y.parameters()]
    fast = make_fast(z, lr=0.05)
    total = 0.0
    for step in range(STEPS):
        averager.optimizer.zero_grad()
        loss_of_double(model, step).backward()
        averager.optimizer.step()
        schedule.step()

        rate = 0.05 * warmed_up(step)
        total += rate**2
        for group in fast.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            for at_y, at_x, at_z in zip(y.parameters(), x, z, strict=True):
                at_y.copy_(BETA * at_x + (1 - BETA) * at_z)
        grads = torch.autograd.grad(loss_of_double(y, step), list(y.parameters()))
        for at_z, grad in zip(z, grads, strict=True):
            at_z.grad = grad
        decays = [rate * decay_at_y * at_y.detach() for at_y in y.parameters()]
        fast.step()
        with torch.no_grad():
            for at_x, at_z, decay in zip(x, z, decays, strict=True):
                at_z.sub_(decay)
                at_x.lerp_(at_z, rate**2 / total if total else 0.0)
    live = [p.detach().clone() for p in model.parameters()]
    context, operations = averager.evaluation_model()
    assert operations == {"swap": 1}
    with context as averaged:
        torch.testing.assert_close(list(averaged.parameters()), x, rtol=1e-9, atol=1e-12)
    assert all(map(torch.equal, live, model.parameters()))
    assert not torch.allclose(live[0], x[0], rtol=1e-3)


def loss_of_double(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return model(torch.randn(16, 4, generator=generator).double()).square().mean()


def test_schedule_free_recomputes_the_statistics_and_gives_those_of_training_back(
    workload: Workload,
) -> None:
    averager, history, _ = follow(workload, lambda m, o: free(m, o, workload.bn_batches))
    assert averager.evaluation_model()[1] == {"swap": 1, "statistics": 1}
    state = reported(averager)
    assert same(dict(averager.model.state_dict()), dict(history[-1]))
    assert averager.model.training
    images = torch.cat(list(workload.bn_batches))
    convolved = nn.functional.conv2d(images.double(), state["0.weight"].double(), padding=1)
    torch.testing.assert_close(
        state["1.running_mean"].double(), convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(state["0.weight"], history[-1]["0.weight"])


# A row for each averager: what reads the last part begins at half of the steps here.
AVERAGERS = {
    "live": "constant",
    "lawa": "lawa(k=3,every=4)",
    "lawa-auto": "lawa(k=3)",
    "ema": "ema",
    "ema-growing": "ema-growing",
    "swa": "swa(start=0.85)",
    "swa-cyclic": "swa-cyclic",
    "schedule-free": "schedule-free(beta=0.8)",
    "own-averager": str(EXAMPLES / "own_averager.py"),
}
SPENT = {step: 0.7 + 0.3 * step / STEPS for step in range(STEPS + 1)}


def make_plain_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def make_batchnorm_model() -> nn.Module:
    flatten, first, *rest = make_plain_model()
    return nn.Sequential(flatten, first, nn.BatchNorm1d(16), *rest)


@pytest.fixture(params=[make_batchnorm_model, make_plain_model])
def either(request: pytest.FixtureRequest, workload: Workload) -> Workload:
    return dataclasses.replace(workload, make_model=request.param)


def begin(workload: Workload, name: str, seed: int) -> Averager:
    torch.manual_seed(seed)
    model = workload.make_model().train()
    method = find(AVERAGERS[name])
    recipe = method.begin_recipe(model, workload, 0.05)
    return method.begin_averager(model, recipe.optimizer, workload)


def test_every_averager_has_a_row() -> None:
    assert {find(name).averager.name for name in AVERAGERS.values()} > names.AVERAGERS.keys()


@pytest.mark.parametrize("name", AVERAGERS)
def test_an_averager_runs_what_its_part_declares(name: str, either: Workload) -> None:
    part = find(AVERAGERS[name]).averager
    averager = begin(either, name, 0)
    taken = set(go_on(either, averager, range(STEPS)))
    assert taken - {None} == part.step_operations.keys()
    with averager.evaluation_model()[0]:
        pass
    assert averager.evaluation_model()[1] == part.max_evaluation_operations(either)
    # And calibration can measure all of it.
    declared = {*part.step_operations, *part.max_evaluation_operations(either)}
    assert averager.operations().keys() == declared


def go_on(workload: Workload, averager: Averager, steps: range) -> list[str | None]:
    taken = []
    batches = workload.batches(0, steps.start)
    for step, batch in zip(steps, batches, strict=False):
        training_step(workload, averager.model, averager.optimizer, batch)
        taken.append(averager.after_step(SPENT[step + 1]))
    return taken


@pytest.mark.parametrize("name", AVERAGERS)
@pytest.mark.parametrize(
    "either",
    [make_plain_model, pytest.param(make_batchnorm_model, marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_training_that_was_cut_off_goes_on_bit_for_bit(name: str, either: Workload) -> None:
    undisturbed = begin(either, name, 0)
    taken = go_on(either, undisturbed, range(STEPS))
    expected = reported(undisturbed)
    first = begin(either, name, 0)
    for start, cut in itertools.pairwise((0, 1, 11, 24)):
        assert go_on(either, first, range(start, cut)) == taken[start:cut]
        file = io.BytesIO()
        parts = (first.model, first.optimizer, first)
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        second = begin(either, name, 1)
        # In the other order, since none may depend on it.
        for part, state in reversed(
            list(zip((second.model, second.optimizer, second), saved, strict=True))
        ):
            part.load_state_dict(state)
        assert go_on(either, second, range(cut, STEPS)) == taken[cut:]
        assert same(dict(reported(second)), dict(expected))
        assert second.evaluation_model()[1] == undisturbed.evaluation_model()[1]


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 5, "auto"])
def test_windows_of_one_training_are_as_if_each_were_alone(every, workload: Workload) -> None:
    """Those of one interval share a window, and others lie beside it."""
    first = [(4, every), (3, every), (2, every), (4, 3), (3, "auto")]
    torch.manual_seed(0)
    model = workload.make_model().train()
    optimizer = workload.make_optimizer(model, 0.05)
    together = []
    for k, interval in first:
        together.append(Lawa(model, optimizer, k, interval))
        optimizer = together[-1].optimizer
    taken = []
    for batch in itertools.islice(workload.batches(0), STEPS):
        training_step(workload, model, optimizer, batch)
        taken.append([averager.after_step(0.0) for averager in together])
    for place, (k, interval) in enumerate(first):
        alone, _, operations = follow(workload, lambda m, o, k=k, i=interval: Lawa(m, o, k, i))
        assert [each[place] for each in taken] == operations
        # The same snapshots, which a longer window may add up in another order.
        close(reported(together[place]), reported(alone))
    windows = {id(averager.lawa) for averager in together}
    assert len(windows) == {2: 3, 5: 3, "auto": 4}[every]


@pytest.mark.parametrize(("name", "another"), [("ema", "swa"), ("swa", "live"), ("lawa", "ema")])
def test_the_state_of_another_method_is_refused(
    workload: Workload, name: str, another: str
) -> None:
    averager = begin(workload, name, 0)
    before = reported(averager)
    with pytest.raises(ValueError, match="it was saved by another method"):
        averager.load_state_dict(begin(workload, another, 1).state_dict())
    assert same(dict(reported(averager)), dict(before))


@pytest.mark.parametrize("name", ["ema", "swa", "swa-cyclic"])
def test_the_state_of_another_model_is_refused(workload: Workload, name: str) -> None:
    other = dataclasses.replace(workload, make_model=make_plain_model)
    averager = begin(workload, name, 0)
    before = copy.deepcopy(averager.state_dict())
    with pytest.raises(ValueError, match=r"it was saved with another model"):
        averager.load_state_dict(begin(other, name, 1).state_dict())
    wider = copy.deepcopy(before)
    first = next(iter(wider["average"]))
    wider["average"][first] = wider["average"][first].double()
    with pytest.raises(ValueError, match=rf"float64 for {first} and this model .*float32"):
        averager.load_state_dict(wider)
    assert same(averager.state_dict(), before)
