"""Layer stacking: what grows, what it costs, and which averages there are across growth."""

import copy
import dataclasses
import io
import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from baselines.cli import dry_run
from baselines.cli.memory import Memory
from baselines.experiment.calibration import Effort
from baselines.experiment.plan import Plan
from baselines.methods.averagers.ema import fixed_decay
from baselines.methods.names import find
from baselines.methods.part import MethodError
from baselines.methods.recipes import RecipePart, Step
from baselines.training.loop import seed_step, train
from baselines.training.training import Training
from baselines.workloads import text
from baselines.workloads.data.corpus import Corpus
from tests.support.small_training import same
from timing import Budget

SIZE = text.Size(layers=4, width=8, heads=2, context=16)
STREAM = torch.arange(900) % 251
PART = text.held_out(STREAM, SIZE.context)
FOUR = dataclasses.replace(
    text.workload(Corpus.split(bytes(range(256)) * 400, "bytes"), "bytes"),
    name="four",
    make_model=lambda: text.Transformer(SIZE),
    batches=lambda seed, start=0: text.random_sequences(STREAM, 2, SIZE.context, seed, start),
    num_blocks=SIZE.layers,
    evaluate=lambda model: text.evaluate(model, PART),
)
COSTS = {
    "load_data": 0.0003,
    "stacked_step_1_of_4": 0.004,
    "stacked_step_2_of_4": 0.006,
    "train_step": 0.01,
    "stack_to_2_of_4": 0.0005,
    "stack_to_4_of_4": 0.0007,
    "collect": 0.0007,
    "average": 0.002,
    "ema_update": 0.0006,
    "swa_update": 0.0004,
    "evaluate": 0.05,
}
RATE, BUDGET = 0.01, 0.2


def begin(method: str, budget: float = BUDGET) -> Training:
    return Training(FOUR, [find(method)], 0, Budget(budget), COSTS, RATE, "algoperf")


def step(training: Training) -> Step:
    seed_step(training.seed, training.step, 0)
    return training.next_step()


def grown(training: Training) -> list[Step]:
    """Train until all blocks are part of the model."""
    steps = [step(training)]
    while training.recipe.depth < SIZE.layers:
        steps.append(step(training))
    return steps


def naive(model: text.Transformer, blocks: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """The logits of a model of these blocks, one after the other."""
    x = model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1]))
    for place in blocks:
        x = text.Block.forward(model.blocks[place], x)
    return model.head(model.norm(x))


def test_a_grown_model_is_the_function_of_its_first_blocks_one_upon_the_other() -> None:
    training = begin("layer-stacking")
    model, (tokens, _) = training.model, next(FOUR.batches(0))
    seen = []
    while training.recipe.depth < SIZE.layers:
        before = copy.deepcopy(model)
        state = copy.deepcopy(training.recipe.optimizer.state_dict()["state"])
        depth = training.recipe.depth
        assert torch.equal(model(tokens), naive(model, list(range(depth)), tokens))
        ran = step(training)
        # What is no part of the model stands as it was drawn, without gradients and momentum.
        later = [p for block in model.blocks[depth:] for p in block.parameters()]
        if not ran.began:
            assert all(p.grad is None and p not in training.recipe.optimizer.state for p in later)
            assert same(
                [b.state_dict() for b in before.blocks[depth:]],
                [b.state_dict() for b in model.blocks[depth:]],
            )
            continue
        seen.append((depth, training.recipe.depth, ran.operations[-1]))
        first = list(range(depth))
        assert torch.equal(model(tokens), naive(model, first + first, tokens))
        assert sorted(ran.began) == sorted(
            name
            for name, _ in model.named_parameters()
            if re.match(rf"blocks\.[{depth}-{2 * depth - 1}]\.", name)
        )
        # As published, what Adam keeps of a block comes with it; that of old ones goes on.
        own = training.recipe.optimizer.state
        for old, new in zip(model.blocks[:depth], model.blocks[depth : 2 * depth], strict=True):
            for theirs, mine in zip(old.parameters(), new.parameters(), strict=True):
                assert same(own[theirs], own[mine])
                assert own[theirs]["exp_avg"] is not own[mine]["exp_avg"]
                assert own[theirs]["step"] == training.updates
        assert len(state) < len(training.recipe.optimizer.state_dict()["state"])
    assert seen == [(1, 2, "stack_to_2_of_4"), (2, 4, "stack_to_4_of_4")]


def test_without_the_state_copied_blocks_begin_without_one() -> None:
    training = begin("layer-stacking(copy_state=false)")
    grown(training)
    new = training.model.blocks[2:].parameters()
    assert not any(parameter in training.recipe.optimizer.state for parameter in new)
    step(training)
    state = training.recipe.optimizer.state
    assert all(state[p]["step"] == 1 for p in training.model.blocks[2:].parameters())


@pytest.mark.parametrize(
    ("blocks", "depths"), {2: [1, 2], 3: [1, 2, 3], 6: [2, 3, 6], 12: [3, 6, 12]}.items()
)
def test_it_begins_with_a_quarter_and_ends_with_all(blocks: int, depths: list[int]) -> None:
    part = find("layer-stacking").recipe
    assert part.depths(blocks) == depths
    ends = [part.depth_at(spent, blocks) for spent in (0.0, 0.1249, 0.125, 0.2999, 0.3, 1.0)]
    first, half = -(-blocks // 4), -(-blocks // 2)
    assert ends == [first, first, half, half, blocks, blocks]


def test_a_run_is_charged_for_each_depth_and_for_growing() -> None:
    (run,) = train(FOUR, [find("layer-stacking")], 0, Budget(BUDGET), COSTS, RATE, 8).runs
    assert run.failure is None
    spent, depth, counts = 0.0, 1, dict.fromkeys(COSTS, 0)
    for _ in range(run.steps):
        # Slow and obvious: the depth before, then the growth that is due by what was spent before.
        name = {1: "stacked_step_1_of_4", 2: "stacked_step_2_of_4", 4: "train_step"}[depth]
        counts["load_data"] += 1
        counts[name] += 1
        charged = COSTS[name]
        for at, to in ((0.125, 2), (0.3, 4)):
            if spent / BUDGET >= at and depth < to:
                counts[f"stack_to_{to}_of_4"] += 1
                charged += COSTS[f"stack_to_{to}_of_4"]
                depth = to
        spent += charged
    counts["evaluate"] = len(run.points)
    assert run.counts == {name: times for name, times in counts.items() if times}
    assert run.rst_seconds == pytest.approx(spent)
    assert BUDGET - run.step_seconds < run.rst_seconds <= BUDGET
    assert run.counts["stack_to_2_of_4"] == run.counts["stack_to_4_of_4"] == 1


@pytest.mark.slow
def test_an_evaluation_is_of_the_model_as_it_then_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def evaluate(model: nn.Module) -> float:
        tokens = PART[0][:2]
        with torch.no_grad():
            logits = model(tokens)
            same_as = [d for d in (1, 2, 4) if same(logits, naive(model, list(range(d)), tokens))]
        found.extend(same_as)
        return 1.0

    workload = dataclasses.replace(FOUR, evaluate=evaluate)
    for method in ("layer-stacking", "layer-stacking+ema", "layer-stacking+swa(start=0.1)"):
        found.clear()
        train(workload, [find(method)], 0, Budget(BUDGET), COSTS, RATE, 12)
        assert len(found) >= 10
        assert found == sorted(found)
        assert set(found) == {1, 2, 4}, method


def history_of(training: Training, steps: int) -> tuple[list[dict], dict[str, int]]:
    """The weights after each step, and after which each parameter became part of the model."""
    weights, began = [], {}
    for number in range(1, steps + 1):
        ran = step(training)
        began |= dict.fromkeys(ran.began, number)
        named = training.model.named_parameters()
        weights.append({name: p.detach().double().clone() for name, p in named})
    return weights, began


def average_of(training: Training) -> dict[str, torch.Tensor]:
    averager = training.runs[0].averager
    with averager.evaluation_model()[0] as model:
        return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, mean in wanted.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [8, 9, 14, 15, 24])
def test_lawa_across_growth_has_an_old_blocks_window_and_a_new_ones_own(steps: int) -> None:
    training = begin("layer-stacking+lawa(k=4,every=3)")
    weights, began = history_of(training, steps)
    # LAWA says what it has no average of.
    since = steps - steps % 3
    is_live = any(at >= since for at in began.values())
    with pytest.warns(UserWarning, match="stay live") if is_live else nullcontext():
        found = average_of(training)
    wanted = {}
    for name in weights[-1]:
        taken = [t for t in range(3, steps + 1, 3) if t > began.get(name, 0)][-4:]
        # Without a snapshot it is live.
        values = [weights[t - 1][name] for t in taken] or [weights[-1][name]]
        wanted[name] = sum(values) / len(values)
    close(found, wanted)


def test_ema_across_growth_goes_on_for_an_old_block_and_begins_for_a_new_one() -> None:
    training = begin("layer-stacking+ema")
    weights, began = history_of(training, 26)
    assert len(set(began.values())) == 2
    wanted = {}
    for name in weights[-1]:
        first = max(began.get(name, 1), 1)
        wanted[name] = weights[first - 1][name]
        for count, t in enumerate(range(first + 1, 27), start=1):
            decay = fixed_decay(0.995, count)
            wanted[name] = decay * wanted[name] + (1 - decay) * weights[t - 1][name]
    close(average_of(training), wanted)


@pytest.mark.parametrize("steps", [15, 22, 27, 29])
def test_swa_across_growth_averages_what_has_been_part_of_the_model(steps: int) -> None:
    training = begin("layer-stacking(quarter=0.3,half=0.1)+swa(start=0.1)", budget=0.3)
    averager = training.runs[0].averager
    taken, update = [], averager.average.update_parameters
    averager.average.update_parameters = lambda model: (taken.append(training.step), update(model))
    weights, began = history_of(training, steps)
    wanted = {}
    for name in weights[-1]:
        own = [t for t in taken if t >= began.get(name, 0)]
        values = [weights[t - 1][name] for t in own] or [weights[-1][name]]
        wanted[name] = sum(values) / len(values)
    close(average_of(training), wanted)


AVERAGES = ("", "+lawa(k=4,every=3)", "+ema", "+swa(start=0.1)")


@pytest.mark.slow
@pytest.mark.parametrize("average", AVERAGES)
def test_cut_off_around_growth_it_goes_on_bit_for_bit(average: str) -> None:
    undisturbed = begin(f"layer-stacking{average}", budget=0.1)
    files, grew = {}, []
    while undisturbed.step < 13:
        if step(undisturbed).began:
            grew.append(undisturbed.step)
        files[undisturbed.step] = io.BytesIO()
        torch.save(undisturbed.state_dict(), files[undisturbed.step])
    assert len(grew) == 2
    assert grew[-1] < 12
    for cut in {cut for at in grew for cut in (at - 1, at)}:
        second = begin(f"layer-stacking{average}", budget=0.1)
        with torch.no_grad():
            for parameter in second.model.parameters():
                parameter.zero_()
        files[cut].seek(0)
        second.load_state_dict(torch.load(files[cut], weights_only=True))
        while second.step < undisturbed.step:
            step(second)
        for part in ("model", "recipe", "optimizer", "runs", "schedule", "ran"):
            assert same(second.state_dict()[part], undisturbed.state_dict()[part]), (cut, part)
        assert same(average_of(second), average_of(undisturbed))


@pytest.mark.slow
def test_an_average_on_top_changes_no_training() -> None:
    for average in AVERAGES[1:]:
        method = find(f"layer-stacking{average}")
        # So cheap that it grows at the same steps.
        free = {**COSTS, **dict.fromkeys(("collect", "ema_update", "swa_update"), 1e-12)}
        both = Training(FOUR, [method], 0, Budget(BUDGET), free, RATE, "algoperf")
        for training in (both, alone := begin("layer-stacking")):
            for _ in range(18):
                step(training)
        assert same(both.model.state_dict(), alone.model.state_dict())


def test_what_cannot_grow_is_refused_in_a_line() -> None:
    method = find("layer-stacking+examples/own_averager.py")
    said = "the model of layer-stacking grows, and PolynomialMean does not say what of its average"
    with pytest.raises(MethodError, match=said):
        Training(FOUR, [method], 0, Budget(1.0), {**COSTS, "polynomial_update": 1e-6}, RATE, "ntng")

    def unlike() -> nn.Module:
        model = text.Transformer(SIZE)
        model.blocks[2] = nn.Linear(8, 8)
        return model

    other = dataclasses.replace(FOUR, make_model=unlike)
    with pytest.raises(MethodError, match=r"a block of four cannot be copied .* of block 3 are of"):
        find("layer-stacking").begin_recipe(other.make_model(), other, RATE)
    # Two that go together, although either with the default of the other would not.
    assert find("layer-stacking(quarter=0.85,half=0.1)").recipe.quarter == 0.85
    alone = dataclasses.replace(FOUR, num_blocks=1)
    with pytest.raises(MethodError, match="needs 2 blocks or more, and there is 1"):
        find("layer-stacking").step_kinds(alone)
    for settings in ("quarter=0.5,half=0.6", "quarter=0", "half=1"):
        with pytest.raises(MethodError, match=r"layer-stacking.*: .* must be between 0 and 1: "):
            find(f"layer-stacking({settings})")


@dataclasses.dataclass(frozen=True)
class _Untold(RecipePart):
    def begin(self, model, workload, learning_rate):
        recipe = super().begin(model, workload, learning_rate)
        plain = recipe.step
        recipe.step = lambda *args: plain(*args)._replace(began=("head.weight",))
        return recipe


def test_a_recipe_that_grows_and_does_not_say_so_before_is_refused() -> None:
    method = dataclasses.replace(find("constant"), name="untold", recipe=_Untold())
    (run,) = train(FOUR, [method], 0, Budget(BUDGET), COSTS, RATE, 2).runs
    assert "a step of untold has made head.weight part of the model" in str(run.failure)
    assert "add `grows = True`" in str(run.failure)


@pytest.mark.slow
def test_a_dry_run_tries_the_whole_model_at_the_rate_of_each_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dry_run, "effort", lambda *_: Effort(1.0, 5))
    rates = []

    def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        rates.append(rate)
        return FOUR.make_optimizer(model, rate)

    workload = dataclasses.replace(FOUR, make_optimizer=make_optimizer)

    def memory_of(*names: str) -> Memory:
        methods = tuple(map(find, names))
        plan = Plan(workload, methods, (0,), Budget(1.0), workload.learning_rate)
        return dry_run.estimate(plan, timed_seconds=0.02).memory

    plain, grows = memory_of("constant"), memory_of("layer-stacking")
    assert plain.optimizer == grows.optimizer > 0
    assert plain.gradients == grows.gradients > 0
    assert plain.activations == grows.activations > 0
    rates.clear()
    memory_of("lion(rate=0.25)")
    own = workload.learning_rate
    # Calibration measures the default methods too.
    assert {rate / own for rate in rates} == {1.0, 0.25}
    assert rates[-1] == 0.25 * own
