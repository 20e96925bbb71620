"""Recipes: what they need, what they are charged for, and that a cut-off changes nothing."""

import copy
import dataclasses
import io
import itertools
import re
from collections import Counter

import pytest
import torch

from baselines.cli import options
from baselines.experiment.calibration import operations
from baselines.experiment.plan import Plan, check
from baselines.methods.names import RECIPES, find
from baselines.methods.part import MethodError
from baselines.methods.recipes import RecipePart
from baselines.training.loop import seed_step, train
from baselines.training.training import Training
from baselines.workloads import Workload, digits, text
from baselines.workloads.data.corpus import Corpus
from tests.support.profiles import profile_of
from tests.support.small_training import same
from timing import Budget

DIGITS = digits.load()
WORDS = text.workload(Corpus.split(bytes(range(256)) * 400, "bytes"), "bytes")
WITHOUT = dataclasses.replace(
    DIGITS, name="bare", losses=None, logits=None, examples=None, blocks=None, num_blocks=0
)
# A row a recipe: its method, a workload for it, and the costs of what it alone runs.
ROWS: dict[str, tuple[str, Workload, dict[str, float]]] = {
    "schedule-free": ("schedule-free", DIGITS, {"schedule_free_step": 0.011}),
    "lion": ("lion+decayed", DIGITS, {"lion_step": 0.009}),
    "sophia": ("sophia+decayed", DIGITS, {"sophia_step": 0.012, "hessian": 0.013}),
    "selective-backprop": ("selective-backprop+decayed", DIGITS, {"score": 0.003}),
    "rho-loss": (
        "rho-loss(epochs=1)+decayed",
        DIGITS,
        {"score_by_id": 0.0031, "irreducible_step": 0.0101, "irreducible_score": 0.0029},
    ),
    "layer-stacking": (
        "layer-stacking(quarter=0.001,half=0.02)+decayed",
        WORDS,
        {"stacked_step_1_of_2": 0.006, "stack_to_2_of_2": 0.0004},
    ),
    "layer-dropping": (
        "layer-dropping+decayed",
        WORDS,
        {f"train_step_{kept}_of_2": 0.004 + 0.003 * kept for kept in range(3)},
    ),
}
BASE = {
    "load_data": 0.0003,
    "train_step": 0.01,
    "collect": 0.0007,
    "average": 0.002,
    "statistics": 0.025,
    "evaluate": 0.05,
    "swap": 0.002,
}
BUDGET = 0.4
# Lower than the workload's, for those that go by the sign.
RATE = 0.01

rows = pytest.mark.parametrize("name", ROWS)


def costs_of(name: str) -> dict[str, float]:
    return {**BASE, **ROWS[name][2]}


def begin(name: str, seed: int = 0, budget: float = BUDGET) -> Training:
    method, workload, _ = ROWS[name]
    found = [find(method)]
    return Training(workload, found, seed, Budget(budget), costs_of(name), RATE, "algoperf")


def go_on(training: Training, steps: range) -> list[tuple]:
    """Train as the loop does; gives what each step was."""
    taken = []
    for number in steps:
        seed_step(training.seed, number, 0)
        step = training.next_step()
        taken.append((step.operations, float(step.loss), step.updated, training.spent))
    return taken


def test_every_recipe_has_a_row() -> None:
    assert ROWS.keys() == RECIPES.keys()


@pytest.mark.slow
@rows
def test_a_run_is_charged_for_what_its_steps_ran_and_keeps_within_its_budget(name: str) -> None:
    method, workload, _ = ROWS[name]
    costs = costs_of(name)
    (run,) = train(workload, [find(method)], 0, Budget(BUDGET), costs, RATE, 2).runs
    assert run.failure is None
    # Counted by hand: the steps once more, without an account.
    torch.manual_seed(0)
    counted = Counter()
    training = begin(name)
    for number in range(run.steps):
        seed_step(0, number, 0)
        counted.update(training.next_step().operations)
    assert run.updates == training.updates
    assert {key: run.counts[key] for key in counted} == counted
    free = {"load_data", "evaluate"}
    charged = sum(costs[key] * times for key, times in run.counts.items() if key not in free)
    assert run.rst_seconds == pytest.approx(charged)
    assert BUDGET - run.step_seconds < run.rst_seconds <= BUDGET


@rows
def test_calibration_measures_each_operation_once_and_it_runs(name: str) -> None:
    method, workload, own = ROWS[name]
    found = operations(workload, [find(method)], {"k": 1})
    assert own.keys() <= found.keys()
    found["load_data"].run()
    for operation in own:
        found[operation].run()


@pytest.mark.slow
@rows
def test_cut_off_anywhere_it_goes_on_bit_for_bit(name: str) -> None:
    steps = range(34)
    undisturbed = begin(name, budget=5.0)
    taken = go_on(undisturbed, steps)
    for cut in (1, 8, 26):
        first = begin(name, budget=5.0)
        assert go_on(first, steps[:cut]) == taken[:cut]
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = begin(name, budget=5.0)
        # As in a process that begins anew: nothing of it is there but what was saved.
        with torch.no_grad():
            for parameter in second.model.parameters():
                parameter.zero_()
        second.load_state_dict(torch.load(file, weights_only=True))
        assert go_on(second, steps[cut:]) == taken[cut:]
        states = (second.model.state_dict(), second.recipe.state_dict())
        wanted = (undisturbed.model.state_dict(), undisturbed.recipe.state_dict())
        assert all(same(mine, theirs) for mine, theirs in zip(states, wanted, strict=True))


@pytest.mark.parametrize("name", ["lion", "sophia"])
def test_an_average_on_top_changes_nothing_and_is_of_the_weights(name: str) -> None:
    plain, averaged = begin(name), begin(name)
    method = find(f"{ROWS[name][0]}+lawa(k=3,every=2)")
    averaged = Training(DIGITS, [method], 0, Budget(BUDGET), costs_of(name), RATE, "mlperf")
    plain = Training(
        *(DIGITS, [find(ROWS[name][0].removesuffix("+decayed"))], 0, Budget(BUDGET)),
        *(costs_of(name), RATE, "algoperf"),
    )
    averaged.schedule.lr_lambdas = plain.schedule.lr_lambdas
    history = []
    for number in range(12):
        for training in (plain, averaged):
            seed_step(0, number, 0)
            training.next_step()
        history.append(copy.deepcopy(plain.model.state_dict()))
        assert same(history[-1], averaged.model.state_dict())
    with averaged.runs[0].averager.evaluation_model()[0] as model:
        for key, weight in model.named_parameters():
            naive = sum(history[step - 1][key].double() for step in (8, 10, 12)) / 3
            torch.testing.assert_close(weight.double(), naive, rtol=1e-5, atol=1e-6)


@rows
def test_a_workload_that_lacks_what_a_recipe_needs_is_refused_in_a_line(name: str) -> None:
    method, workload, _ = ROWS[name]
    found = find(method)
    if not found.recipe.needs:
        found.check(WITHOUT)
        return
    said = f"{name} needs .* of a workload, which bare does not offer: choose another"
    plan = Plan(WITHOUT, (found,), (0,), Budget(BUDGET), RATE)
    model = WITHOUT.make_model()
    profile = profile_of([BASE], plan.signature)
    for refusal in (
        lambda: found.begin_recipe(model, WITHOUT, RATE),
        lambda: check(plan, profile),
        lambda: Training(WITHOUT, [found], 0, Budget(1.0), BASE, RATE, "algoperf"),
    ):
        with pytest.raises(MethodError, match=said):
            refusal()
    # As --dry-run and every start of a comparison ask.
    with pytest.raises(Exception, match=re.escape("--methods: ") + said):
        options.try_out(plan)
    # What it needs is what it takes: with that alone, it trains.
    offers = {need: getattr(workload, need) for need in found.recipe.needs}
    if "blocks" in offers:
        return
    enough = dataclasses.replace(WITHOUT, **offers)
    Training(enough, [found], 0, Budget(1.0), costs_of(name), RATE, "algoperf").next_step()


@rows
def test_ranks_are_refused_before_anything_where_a_recipe_cannot_use_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, workload, _ = ROWS[name]
    plan = Plan(workload, (find(method),), (0,), Budget(BUDGET), RATE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if name in ("schedule-free", "lion", "sophia", "layer-stacking"):
        options.try_out(plan)
        return
    with pytest.raises(Exception, match=rf"{name} cannot be trained over 2 ranks: .*; start it"):
        options.try_out(plan)


@dataclasses.dataclass(frozen=True)
class _Mixed(RecipePart):
    def step_kinds(self, workload):
        return {"load_data": 1}, {"train_step": 1}


def test_a_step_of_no_kind_that_is_declared_is_refused() -> None:
    found = dataclasses.replace(find("constant"), name="mixed", recipe=_Mixed())
    (run,) = train(DIGITS, [found], 0, Budget(BUDGET), BASE, RATE, 2).runs
    assert "a step of mixed ran load_data, train_step, which none of its" in str(run.failure)
    # The dearest kind is what a budget must have left.
    assert run.step_seconds == BASE["train_step"]


def test_a_rate_of_its_own_follows_the_comparisons() -> None:
    methods = tuple(map(find, ("decayed", "lion(rate=0.2)+decayed")))
    plan = Plan(DIGITS, methods, (0,), Budget(1.0), 0.5)
    assert [plan.rate_of(method) for method in methods] == pytest.approx([0.5, 0.1])
    (group,) = methods[1].begin_recipe(DIGITS.make_model(), DIGITS, 0.1).optimizer.param_groups
    # Rate times decay is that of the workload's own.
    assert group["lr"] * group["weight_decay"] == pytest.approx(0.5 * 5e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "lion(rate=0)": "lion.rate: rate must be above 0: 0",
        "sophia(every=0)": "sophia.every: every must be above 0: 0",
        "layer-dropping(keep=1)": "layer-dropping.keep: keep must be between 0 and 1: 1",
        "layer-stacking(half=0)": "layer-stacking.half: half must be between 0 and 1: 0",
        "selective-backprop(beta=-1)": "selective-backprop.beta: beta must be above 0: -1",
        "rho-loss(batches=1)": "rho-loss.batches: batches must be a whole number from 2: 1",
    }.items(),
)
def test_a_wrong_setting_is_refused(name: str, said: str) -> None:
    with pytest.raises(MethodError, match=re.escape(said)):
        find(name)


def test_the_same_examples_come_with_the_same_ids() -> None:
    assert DIGITS.examples is not None
    for images, labels, ids in itertools.islice(DIGITS.batches(0), 3):
        own, own_labels, own_ids = DIGITS.examples.get(ids)
        assert torch.equal(labels, own_labels)
        assert torch.equal(ids, own_ids)
        # Moved by up to a pixel, so that the middle is in both.
        assert own.shape == images.shape
