"""Methods by name and from users' files, their settings, and what each needs measured."""

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from baselines.cli import options
from baselines.cli.dry_run import estimate
from baselines.experiment.calibration import calibration_target, measure_profile, operations
from baselines.experiment.kept import read_comparison
from baselines.experiment.plan import Plan, costs_depend_on, methods_by_training
from baselines.methods.averagers.ema import EmaPart
from baselines.methods.averagers.swa import SwaPart
from baselines.methods.names import (
    AVERAGERS,
    NAMES,
    RECIPES,
    SCHEDULES,
    SHORT,
    file_digests,
    find,
    split_names,
)
from baselines.methods.part import MethodError, Range
from baselines.methods.recipes.schedule_free import ScheduleFreePart
from baselines.methods.schedules import Wsd
from baselines.training.loop import train
from baselines.training.results import Run
from baselines.workloads import digits
from tests.support.commands import command
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, RATE, WORKLOAD, follow, method_of
from tests.support.user_files import SCHEDULE, assert_said_in_one_line, averager, write
from timing import Budget
from timing.cli import commandline
from timing.rst.schedules import cosine

LOOKAHEAD = Path(__file__).parent.parent.parent / "examples" / "own_recipe.py"
OWN_COSTS = {**COSTS, "lookahead": 0.0004}
PARTS = {**RECIPES, **SCHEDULES, **AVERAGERS}


def train_with(name: str, costs=OWN_COSTS, budget: float = 1.0):
    (run,) = train(WORKLOAD, [method_of(name)], 0, Budget(budget), costs, RATE, 5).runs
    return run


def test_a_name_is_that_of_a_part() -> None:
    for name, part in PARTS.items():
        assert part in find(name).parts.values()
    with pytest.raises(MethodError, match=r"'law' is none of constant, .*, nor a path to a \.py"):
        find("law")


def test_a_file_is_found_and_titled_by_its_stem(tmp_path: Path) -> None:
    path = write(tmp_path, SCHEDULE.format("1 - spent"))
    method = find(path)
    assert (method.title, method.schedule.name) == ("mine", "mine")
    assert method.schedule.factor(0.25) == 0.75
    # Once for each of its texts, so that a training's methods do not change under it.
    assert find(path) == method
    assert find(path).schedule is method.schedule
    assert find(str(LOOKAHEAD)).title == "Lookahead"


def test_another_text_of_a_file_is_another_part(tmp_path: Path) -> None:
    path = write(tmp_path, SCHEDULE.format("1 - spent"))
    before = find(path)
    digests = file_digests([find("lawa"), before])
    write(tmp_path, SCHEDULE.format("1.0"))
    assert find(path).schedule.factor(0.5) == 1
    assert before.schedule.factor(0.5) == 0.5
    again = file_digests([find("lawa"), find(path)])
    assert digests.keys() == again.keys() == {path}
    assert digests != again


def test_another_text_of_the_same_second_and_length_is_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = Path(write(tmp_path, SCHEDULE.format("0.25")))
    moment = path.stat().st_mtime_ns
    assert find(str(path)).schedule.factor(0) == 0.25
    path.write_text(SCHEDULE.format("0.75"))
    os.utime(path, ns=(moment, moment))
    assert find(str(path)).schedule.factor(0) == 0.75


BEGIN = "    def begin(self, model, optimizer, workload):\n        {}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", r"mine.py defines no name `part`, which must be a RecipePart or SchedulePart or"),
        ("part = 3", r"mine.py defines `part` as a int, which must be a RecipePart or"),
        ("def part(:", r"mine.py, line 1: invalid syntax"),
        ("import nothing_like_it", r"mine.py, line 1: ModuleNotFoundError: No module named 'noth"),
        ("raise ValueError('a\\nb')", r"mine.py, line 1: ValueError: a b$"),
        ("import sys\nsys.exit(0)", r"mine.py, line 2: it ends the process \(sys.exit\): raise an"),
        ("raise GeneratorExit", r"mine.py, line 1: GeneratorExit$"),
        (SCHEDULE.format("1 / spent"), r"mine.py, line 8: ZeroDivisionError"),
        (SCHEDULE.format("float('nan')"), r"the schedule of \S*mine.py must .* nan$"),
        (SCHEDULE.format("'half'"), r"the schedule of .* at 0% .* gives 'half'$"),
        (
            "from baselines.methods.averagers.ema import EmaPart\npart = EmaPart(0.5)",
            r"mine.py calls its part 'ema', as a part of the package is called",
        ),
        (
            "from baselines.methods.averagers.ema import EmaPart\npart = EmaPart(1.5)",
            r"mine.py, line 2: ValueError: decay must be between 0 and 1: 1.5",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    assert_said_in_one_line(lambda: find(path), MethodError, said)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("after_step(self, spent): return self.nothing", r"AttributeError: 'Own' object has no"),
        ("after_step(self, spent): sys.exit(0)", r"it ends the process \(sys\.exit\)"),
        ("evaluation_model(self): return self.model(1), {}", r"AttributeError: 'int' object"),
        ("after_step(self, spent): return 'unknown'", None),
    ],
)
def test_what_goes_wrong_in_training_is_a_line_with_its_place(
    what: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, averager(f"    def {what}"))
    failure = str(train_with(path).failure)
    if said:
        assert re.search(rf"^at step \d+: \S*mine\.py, line 10: {said}", failure)
    else:
        # Nothing of the file is wrong, but what it gave: the traceback is kept.
        said = r"a step of .* ran 'unknown' 1 times, and its averager declares 0 .*; its traceback"
        assert re.search(said, failure)
        kept = Path(failure.rpartition(" is in ")[2])
        assert "Traceback" in kept.read_text()
        kept.unlink()
    assert "\n" not in failure
    assert capsys.readouterr() == ("", "")


def test_an_averager_that_cannot_be_made_is_told_with_its_place(tmp_path: Path) -> None:
    own = "    def __init__(self, model, optimizer):\n        model.transformer.blocks\n"
    method = find(write(tmp_path, averager(own)))
    said = r"mine\.py, line 11: AttributeError: 'Sequential' object has no attribute 'transformer'"
    model = WORKLOAD.make_model()
    base = WORKLOAD.make_optimizer(model, 0.1)
    assert_said_in_one_line(lambda: method.begin_averager(model, base, WORKLOAD), MethodError, said)


def test_a_range_of_no_setting_is_told_with_its_place(tmp_path: Path) -> None:
    text = LOOKAHEAD.read_text().replace('space = {"every"', 'space = {"evry"')
    said = r"mine\.py, line 47: space names evry, and lookahead has no such setting: it has"
    assert_said_in_one_line(lambda: find(write(tmp_path, text)), MethodError, said)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(MethodError, match=r"nowhere\.py: No such file or directory"):
        find("nowhere.py")


@pytest.mark.slow
def test_the_example_trains_as_lookahead_does() -> None:
    run = train_with(f"decayed+{LOOKAHEAD}")
    assert run.failure is None
    assert run.counts["lookahead"] == run.steps // 6 > 10
    charged = sum(OWN_COSTS[name] * times for name, times in run.counts.items() if name in PAID)
    assert run.rst_seconds == pytest.approx(charged)

    # Against Lookahead written out, with the schedule on the same account.
    torch.manual_seed(0)
    model = WORKLOAD.make_model().train()
    optimizer = WORKLOAD.make_optimizer(model, RATE)
    slow = [p.detach().clone() for p in model.parameters()]
    spent = 0.0
    for step, batch in enumerate(itertools.islice(WORKLOAD.batches(0), run.steps), start=1):
        optimizer.param_groups[0]["lr"] = RATE * (1 - spent)
        optimizer.zero_grad()
        WORKLOAD.loss(model, batch).backward()
        optimizer.step()
        spent += COSTS["train_step"]
        if step % 6 == 0:
            spent += OWN_COSTS["lookahead"]
            with torch.no_grad():
                for at_slow, at_fast in zip(slow, model.parameters(), strict=True):
                    at_slow += 0.5 * (at_fast - at_slow)
                    at_fast.copy_(at_slow)
    assert run.final == pytest.approx(WORKLOAD.evaluate(model), rel=1e-4)
    assert run.final != pytest.approx(train_with("decayed").final, rel=1e-1)


PAID = ("train_step", "lookahead")


def test_a_file_of_a_users_own_trains_alone(tmp_path: Path) -> None:
    """It may change the training, and then those that share it."""
    own = write(tmp_path, averager(""))
    methods = tuple(map(find, ("constant", own, "lawa")))
    plan = Plan(WORKLOAD, methods, (0,), Budget(1.0), RATE)
    assert methods_by_training(plan) == [("constant", "lawa"), (own,)]


@functools.cache
def unchanged(name: str) -> Run:
    return follow(name, budget=0.2).runs[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ema", {"ema.decay": 0.5}),
        ("ema-growing", {"ema-growing.half_life": 0.3}),
        ("swa", {"swa.start": 0.3}),
        ("lawa", {"lawa.every": 2}),
        ("lawa", {"lawa.k": 1}),
        ("wsd", {"wsd.cooldown": 0.7}),
        ("wsd", {"wsd.warm_up": 0.3}),
        ("schedule-free", {"schedule-free.beta": 0.5}),
    ],
)
def test_a_setting_changes_what_comes_of_a_method(name: str, change: dict) -> None:
    changed = method_of(name, **change)
    assert changed.settings == {**method_of(name).settings, **change}
    (run,) = train(WORKLOAD, [changed], 0, Budget(0.2), COSTS, RATE, 5).runs
    assert run.final != unchanged(name).final


@pytest.mark.parametrize("name", NAMES)
def test_what_tuning_may_try_are_settings_within_their_ranges(name: str) -> None:
    method = find(name)
    for setting, within in method.space.items():
        for value in (within.low, within.high):
            chosen = int(value) if within.whole else value
            assert method.with_settings({setting: chosen}).settings[setting] == chosen
        default = method.settings[setting]
        assert default == "auto" or within.low <= default <= within.high


def test_what_makes_no_sense_is_refused() -> None:
    for part, wrong in (
        (EmaPart, {"decay": 1.0}),
        (AVERAGERS["ema-growing"].__class__, {"half_life": 0.0}),
        (SwaPart, {"start": 1.5}),
        (ScheduleFreePart, {"beta": -1}),
        (Wsd, {"cooldown": 1.0}),
    ):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1"):
            part(**wrong)
    for low, high, log, whole in ((1, 1, False, False), (0, 1, True, False), (0.5, 2, False, True)):
        with pytest.raises(ValueError, match=f"from {low} to {high}"):
            Range(low, high, log, whole)


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "lawa(k=0)": "lawa.k: k must be from 1 to 10000: 0",
        "lawa(k=two)": "lawa.k cannot be 'two': Input should be a valid integer",
        "lawa(every=manual)": "lawa.every cannot be 'manual': ",
        "lawa(every=0)": "lawa.every: every must be auto, or from 1 to",
        "lawa(decay=1)": "lawa.decay is no setting: lawa has lawa.k, lawa.every",
        "ema(decay=nan)": "ema.decay: decay must be a finite number: nan",
        "ema(decay)": "a setting is NAME=VALUE, and 'decay' is not",
        "constant(a=1)": "constant.a is no setting: constant has none",
        "wsd(warm_up=0.9)": "a warm-up of 0.9 and a decay of 0.2 are more than the budget",
    }.items(),
)
def test_a_wrong_setting_is_refused_in_a_line(name: str, said: str) -> None:
    assert_said_in_one_line(lambda: find(name), MethodError, re.escape(said))


def test_settings_are_those_of_the_methods_that_have_them() -> None:
    lawa = find("wsd+lawa")
    assert lawa.settings == {
        "wsd.warm_up": 0.02,
        "wsd.cooldown": 0.2,
        "lawa.k": 5,
        "lawa.every": "auto",
    }
    # As text, too: so they come from the command line.
    assert lawa.with_settings({"lawa.k": "7"}).settings["lawa.k"] == 7
    with pytest.raises(MethodError, match=r"ema.decay is no setting of lawa-wsd: it has wsd.warm"):
        lawa.with_settings({"ema.decay": 0.5})
    assert split_names("lawa(k=5,every=2), wsd(warm_up=0.1,cooldown=0.3)+ema,constant") == [
        "lawa(k=5,every=2)",
        "wsd(warm_up=0.1,cooldown=0.3)+ema",
        "constant",
    ]


@pytest.mark.slow
@given(st.integers(1, 10_000), st.integers(1, 10**9) | st.just("auto"), st.floats(0.001, 0.999))
def test_the_name_of_a_method_gives_it_back(k: int, every: object, decay: float) -> None:
    for name in (
        f"lawa(k={k},every={every})",
        f"wsd@30%+lawa(every={every})",
        f"ema(decay={decay})",
    ):
        method = find(name)
        assert find(method.name) == method
        assert method.changed.items() <= method.settings.items()


def test_a_profile_serves_every_method_of_the_table_but_recipes() -> None:
    found = operations(digits.load(), [], {"k": 3})
    for name in NAMES:
        method = find(name)
        if any(getattr(WORKLOAD, need) is None for need in method.recipe.needs):
            assert name in RECIPES
            continue
        used = {*method.step_operations(WORKLOAD), *method.max_evaluation_operations(WORKLOAD)}
        assert bool(used - found.keys()) == (name in RECIPES)


def test_costs_are_of_the_largest_window_compared() -> None:
    assert costs_depend_on([]) == {"k": 5}
    assert costs_depend_on(map(find, ("lawa(k=2)", "ema"))) == {"k": 2}
    assert costs_depend_on(map(find, ("lawa(k=2)", "decayed+lawa(k=9)"))) == {"k": 9}


def test_what_is_asked_for_is_measured_too_and_runs() -> None:
    both = f"schedule-free, {LOOKAHEAD}"
    found = calibration_target("digits", methods=both, k=3)
    assert found.operations.keys() == OWN_COSTS.keys()
    for _ in range(2):
        for operation in found.operations.values():
            operation.run()
    assert found.workload["k"] == 3


def test_the_operations_are_those_of_training() -> None:
    """Each training step has a model of its own, and the plain one's is evaluated."""
    workload = digits.load()
    seen = []

    def evaluate(model) -> float:
        seen.append(model)
        return workload.evaluate(model)

    watched = dataclasses.replace(workload, evaluate=evaluate)
    found = operations(watched, [find("schedule-free")], {"k": 3})
    for _ in range(3):
        found["train_step"].run()
    found["evaluate"].run()
    (model,) = seen
    # The model of the training step is the one evaluated, not that of another step.
    assert int(model[1].num_batches_tracked) == 3
    before = [p.detach().clone() for p in model.parameters()]
    found["schedule_free_step"].run()
    assert all(map(torch.equal, before, model.parameters()))
    found["train_step"].run()
    assert not torch.equal(before[0], next(model.parameters()))


OTHER_OPTIMIZER = """
import torch
from dataclasses import dataclass
from baselines import Recipe, RecipePart, Step

class Own(Recipe):
    def step(self, batches, spent):
        {step}
    def operations(self, batch):
        return {{"{name}": super().operations(batch)["train_step"]}}

@dataclass(frozen=True)
class OwnPart(RecipePart):
    step_operations = {{"load_data": 1, "{name}": 1}}
    def begin(self, model, workload, learning_rate):
        return Own(model, torch.optim.{optimizer}(model.parameters(), lr=0.01), workload)

part = OwnPart()
"""
RENAMED = 'return Step(("load_data", "own_step"), super().step(batches, spent).loss)'


@pytest.mark.slow
def test_a_step_of_another_optimizer_has_a_cost_of_its_own(tmp_path: Path) -> None:
    """Its time is not that of the workload's, and would be taken for it without a word."""
    text = OTHER_OPTIMIZER.format(
        step="return super().step(batches, spent)", name="train_step", optimizer="Rprop"
    )
    said = r"mine trains with Rprop and names its step train_step, .* of \w+, the workload's: name"
    method = find(write(tmp_path, text))
    assert_said_in_one_line(lambda: operations(WORKLOAD, [method], {"k": 3}), MethodError, said)
    with pytest.raises(MethodError, match=said):
        train(WORKLOAD, [method], 0, Budget(1.0), COSTS, RATE, 5)
    own = OTHER_OPTIMIZER.format(step=RENAMED, name="own_step", optimizer="Rprop")
    method = find(write(tmp_path, own))
    assert "own_step" in operations(WORKLOAD, [method], {"k": 3})
    (run,) = train(WORKLOAD, [method], 0, Budget(1.0), {**COSTS, "own_step": 0.02}, RATE, 5).runs
    assert run.counts["own_step"] == run.steps == 50
    assert "train_step" not in run.counts


COUNTS_WRONGLY = """
from dataclasses import dataclass
from baselines import Recipe, RecipePart, Step

class Own(Recipe):
    def step(self, batches, spent):
        step = super().step(batches, spent)
        {line}

@dataclass(frozen=True)
class OwnPart(RecipePart):
    def begin(self, model, workload, learning_rate):
        return Own(model, workload.make_optimizer(model, learning_rate), workload)

part = OwnPart()
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("next(batches); return step", r"drew 2 batches and names load_data 1 times"),
        ("return step._replace(operations=('train_step',))", r"drew 1 .* names load_data 0 times"),
        ("return step._replace(operations=())", r"names load_data 0 times; it names nothing"),
        (
            "return step._replace(operations=(*step.operations, 'score'))",
            r"a step of .*mine\.py ran 'score' 1 times, and its recipe declares 0",
        ),
        (
            "return step._replace(operations=(*step.operations, 'train_step'))",
            r"ran 'train_step' 2 times, and its recipe declares 1",
        ),
    ],
)
def test_a_step_names_all_that_it_ran(line: str, said: str, tmp_path: Path) -> None:
    run = train_with(write(tmp_path, COUNTS_WRONGLY.format(line=line)))
    # Where the step of the file begins.
    assert re.match(r"at step \d+: \S*mine\.py, line 6: UndeclaredError: a step ", str(run.failure))
    assert re.search(said, str(run.failure))
    assert "\n" not in str(run.failure)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COUNTS_WRONGLY.format(line="next(batches); return step"), "line 6: .* drew 2 batches and"),
        (
            averager("    def after_step(self, spent): return 'unknown'"),
            "line 10: .* ran 'unknown' 1 times",
        ),
        (
            LOOKAHEAD.read_text().replace(', "lookahead": 1}', "}"),
            "mine.py, line 35: .* measures lookahead, which its parts do not declare: name",
        ),
        (
            averager("    def after_step(self, spent): return spent.x"),
            "line 10: AttributeError: 'f",
        ),
        (
            averager("    def evaluation_model(self): return nullcontext(self.model), {'swap': 1}"),
            "an evaluation of .*mine.py runs swap more often than its evaluation_operations say",
        ),
    ],
)
def test_a_step_of_a_file_is_tried_before_anything_long_begins(
    text: str, said: str, tmp_path: Path
) -> None:
    method = find(write(tmp_path, text))
    plan = Plan(WORKLOAD, (find("lawa"), method), (0,), Budget(1.0), RATE)
    with pytest.raises(typer.BadParameter, match=said) as refused:
        options.try_out(plan)
    assert str(refused.value).startswith("--methods: ")
    assert "\n" not in str(refused.value)
    options.try_out(dataclasses.replace(plan, methods=(find(str(LOOKAHEAD)),)))


SKIPS = """
        self.calls = getattr(self, 'calls', 0) + 1
        if self.calls % 2:
            loss = self.workload.loss(self.network, next(batches)).detach()
            return Step(("load_data",), loss, updated=False)
        return super().step(batches, spent)
"""


def test_a_step_without_an_update_is_charged_and_followed_by_no_average(tmp_path: Path) -> None:
    text = COUNTS_WRONGLY.replace(
        "        step = super().step(batches, spent)\n        {line}", SKIPS
    )
    costs = {**COSTS, "load_data": 0.005, "train_step": 0.01}
    name = f"{write(tmp_path, text.replace('{line}', ''))}+ema"
    (run,) = train(WORKLOAD, [find(name)], 0, Budget(1.0), costs, RATE, 5, policy="mlperf").runs
    assert run.failure is None
    assert run.counts["ema_update"] == run.counts["train_step"] == run.counts["load_data"] // 2 > 5
    assert (run.updates, run.steps) == (run.counts["train_step"], run.counts["load_data"])
    charged = sum(costs[name] * times for name, times in run.counts.items())
    assert run.rst_seconds == pytest.approx(charged)


def test_an_operation_that_nobody_measures_is_refused(tmp_path: Path) -> None:
    text = LOOKAHEAD.read_text().replace("def operations", "def other")
    name = write(tmp_path, text)
    plan = Plan(digits.load(), (find(name),), (0,), Budget(1.0), RATE)
    plan = dataclasses.replace(
        plan, workload=dataclasses.replace(plan.workload, source=("digits", None))
    )
    with pytest.raises(
        MethodError, match=r"mine\.py: the operations\(\) of its parts do not say how lookahead can"
    ):
        measure_profile(plan, lambda *_: None)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    module = "baselines.methods.recipes.schedule_free_optimizer"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MethodError, match=r"schedule-free .* pip install schedulefree") as raised:
        train_with("schedule-free")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_table_needs_no_package_of_a_method() -> None:
    script = "import sys, baselines.methods.names; sys.exit('schedulefree' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_example_of_a_schedule_is_a_power_of_what_is_left() -> None:
    examples = LOOKAHEAD.parent
    method = find(f"{examples / 'own_schedule.py'}(power=3)+lawa")
    assert [method.schedule.factor(spent) for spent in (0.0, 0.5, 1.0)] == [1.0, 0.125, 0.0]
    assert method.title == "LAWA of power decay (power=3.0)"
    with pytest.raises(MethodError, match=r"power\.power: power must be above 0: -1"):
        method.with_settings({"power.power": -1})


@pytest.mark.slow
def test_the_command_compares_files_with_settings_of_their_own(tmp_path: Path) -> None:
    """Set, searched and kept: a recipe, and an averager on top of the plain one."""
    mean = LOOKAHEAD.with_name("own_averager.py")
    plan = Plan(WORKLOAD, (), (0,), Budget(1.0), RATE)
    costs = {**OWN_COSTS, "polynomial_update": 0.0004}
    profile_of([costs] * 5, plan.signature).write(tmp_path / "reference.json")
    common = "--workload digits --seeds 2 --budget 0.3s --reference reference.json --trials 2"
    names = f"decayed,{LOOKAHEAD},{mean},{mean}(eta=9)+decayed"
    given = ("--set", "lookahead.share=0.25", "--set", "polynomial.eta=1")
    done = command(tmp_path, "compare", "--no-publish", *common.split(), "--methods", names, *given)
    assert done.returncode == 0, done.stderr
    assert " Lookahead " in done.stdout
    assert " polynomial mean (eta=9.0) of the decayed rate " in done.stdout
    assert f"{LOOKAHEAD}, seed 1: " in done.stdout
    (kept,) = tmp_path.glob("lawa-runs/*/0.3s")
    trials = json.loads((kept.parent / "0.3s-trials.json").read_text())
    rows = [dict(zip(trials["columns"], row, strict=True)) for row in trials["data"]]
    tried = {
        (row["method"], row["trial"]): {name: row[name] for name in row if "." in name}
        for row in rows
    }
    first = tried[str(LOOKAHEAD), 0]
    assert (first["lookahead.every"], first["lookahead.share"]) == (6, 0.25)
    assert tried[str(LOOKAHEAD), 1]["lookahead.share"] == 0.25
    assert tried[str(LOOKAHEAD), 1]["lookahead.every"] != 6
    # What is in brackets stands; what is given for all holds for the other.
    assert tried[str(mean), 0]["polynomial.eta"] == 1
    assert tried[f"decayed+{mean}(eta=9.0)", 0]["polynomial.eta"] == 9
    # Read back without the files.
    comparison = read_comparison(kept)
    assert comparison.plan.method(str(mean)).settings.keys() == {"polynomial.eta"}
    assert comparison.plan.titles[str(LOOKAHEAD)] == "Lookahead"


WRONG_SETTINGS = {
    "lawa.k": "--set must be NAME=VALUE, such as lawa.k=10: 'lawa.k'",
    "lawa.kk=3": "--set: 'lawa.kk' is no setting of the methods compared; they have lawa.k, ",
    "ema.decay=0.9": "--set: 'ema.decay' is no setting of the methods compared",
    "lawa.k=many": "--set: lawa.k cannot be 'many': Input should be a valid integer",
    "lawa.k=0": "--set: lawa.k: k must be from 1 to 10000: 0",
    "lawa.every=7": "--set: the methods give lawa.every themselves, in brackets",
}


@pytest.mark.parametrize("text", WRONG_SETTINGS)
def test_a_wrong_setting_of_the_command_is_one_line(text: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        options.methods("constant,lawa(every=3)", [text])
    assert str(refused.value).startswith(WRONG_SETTINGS[text])
    assert "\n" not in str(refused.value)
    with pytest.raises(typer.BadParameter, match=r"--set gives lawa\.k twice: 3; 4"):
        options.methods("lawa", ["lawa.k=3", "lawa.k=4"])


@pytest.mark.slow
def test_a_file_whose_operations_cannot_be_measured_is_refused_in_a_dry_run(
    tmp_path: Path,
) -> None:
    text = LOOKAHEAD.read_text().replace("def operations", "def other")
    plan = Plan(digits.load(), (find(write(tmp_path, text)),), (0,), Budget(1.0), RATE)
    with pytest.raises(MethodError, match="do not say how lookahead can be measured"):
        estimate(plan, timed_seconds=0.01)


@pytest.mark.slow
def test_the_command_refuses_a_file_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    from baselines.cli.app import app

    arguments = ["baselines", "compare", "--methods", f"decayed,{write(tmp_path, 'x = 1')}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        commandline.run(app)
    assert stop.value.code == 2
    assert "mine.py defines no name `part`" in capsys.readouterr().err


SUMS = [
    (schedule, average, share)
    for schedule in SCHEDULES
    for average in ("", *AVERAGERS)
    for share in (1.0, 0.3)
    if not (average and PARTS[average].brings)
]


@pytest.mark.parametrize(("schedule", "average", "share"), SUMS)
def test_any_schedule_goes_with_any_averager(schedule: str, average: str, share: float) -> None:
    words = [schedule if share == 1 else f"{schedule}@{share:.0%}", *filter(None, [average])]
    # In any order, and once for all, as the trainings that are shared are told by it.
    method = find("+".join(words))
    assert {find("+".join(order)) for order in itertools.permutations(words)} == {method}
    assert find(method.name) == method
    assert method.schedule == SCHEDULES[schedule]
    assert method.share == share
    part = AVERAGERS.get(average)
    assert method.space.items() >= {
        (f"{average}.{name}", within) for name, within in (part.space if part else {}).items()
    }
    assert (part.title if part else "") in method.title


def test_no_two_sums_have_one_title_or_name() -> None:
    found = [
        find("+".join(filter(None, (f"{schedule}@{share:.0%}", average))))
        for schedule, average, share in SUMS
    ]
    assert len({method.title for method in found}) == len(found) == len(SUMS)
    assert len({method.name for method in found}) == len(found)


def test_short_names_are_those_of_their_sums() -> None:
    for short, parts in SHORT.items():
        assert find(short) == find(parts)
        assert find(parts).name == short


def test_a_part_brings_another_along() -> None:
    assert find("swa-cyclic").schedule.title == "cyclic rate"
    free = find("schedule-free")
    assert free.schedule == ScheduleFreePart.brings[0]
    assert free.averager == ScheduleFreePart.brings[1]
    assert not find("swa-cyclic").shares_training


def test_a_file_is_a_part_of_a_sum(tmp_path: Path) -> None:
    schedule = write(tmp_path, SCHEDULE.format("1 - spent / 2"))
    other = tmp_path / "reads.py"
    other.write_text(averager(""))
    method = find(f"{schedule}@50%+{other}")
    assert method.files == (schedule, str(other))
    assert (method.schedule.name, method.averager.name, method.share) == ("mine", "reads", 0.5)
    assert method.title == "reads of mine at 50% of the budget"
    assert find(f"ema+{schedule}").title == "EMA of mine"
    assert find(f"{LOOKAHEAD}+decayed+lawa").title == "Lookahead: LAWA of the decayed rate"
    with pytest.raises(MethodError, match=r"has two schedules, \S*mine\.py and decayed: give one"):
        find(f"{schedule}+decayed")


@pytest.mark.slow
def test_a_sum_follows_its_schedule_to_its_share_and_charges_its_averager() -> None:
    run = train_with("lawa+cosine@50%", budget=0.5)
    assert {line["operation"] for line in run.account} >= {"collect", "average"}
    rates = [point.learning_rate for point in run.points]
    # Of half a cosine over what the run may spend: at each of its evaluations.
    for point, rate in zip(run.points, rates, strict=True):
        spent = point.rst_seconds / 0.5
        assert rate == pytest.approx(RATE * cosine(spent), abs=0.005)
    assert run.share == 0.5


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "decayed+cosine": "has two schedules, decayed and cosine: give one",
        "lawa+decayed+ema": "has two averagers, lawa and ema: give one",
        "lawa+decay": "'decay' is neither a schedule (constant, decayed, cosine, wsd), nor an",
        "swa-cyclic+decayed": "swa-cyclic brings a schedule of its own: leave decayed out",
        "schedule-free+decayed": "schedule-free brings a schedule of its own: leave decayed out",
        "schedule-free+lawa": "schedule-free brings an averager of its own: leave lawa out",
        "lawa-decayed+ema": "lawa-decayed is short for decayed+lawa: write that",
        "nowhere.py+lawa": "nowhere.py: No such file or directory",
        "lawa@25%": "a share is of a schedule, such as decayed@25%, and not of lawa",
        "decayed@0%": "@0% is no share of the budget in whole percent, such as @25%",
        "decayed@25": "@25 is no share of the budget in whole percent",
        "decayed@101%+lawa": "@101% is no share",
        "decayed@": "@ is followed by a share of the budget, such as @25%",
        "+": "'' is neither a schedule",
        "lawa(k=1": "'lawa(k=1' is none of",
        "live": "'live' is none of",
    }.items(),
)
def test_a_sum_that_makes_no_sense_is_refused_in_a_line(name: str, said: str) -> None:
    assert_said_in_one_line(lambda: find(name), MethodError, re.escape(said))


def test_sums_of_the_constant_rate_share_its_training() -> None:
    methods = tuple(map(find, ("constant", "constant+lawa", "lawa(k=2)", "wsd+swa")))
    plan = Plan(WORKLOAD, methods, (0,), Budget(1.0), RATE)
    assert methods_by_training(plan) == [("constant", "lawa", "lawa(k=2)"), ("wsd+swa",)]
    faster = dataclasses.replace(methods[1], learning_rate=2 * RATE)
    plan = dataclasses.replace(plan, methods=(methods[0], faster))
    assert methods_by_training(plan) == [("constant",), ("lawa",)]


def test_no_two_methods_of_a_plan_have_one_name() -> None:
    with pytest.raises(ValueError, match="the method lawa is named twice"):
        Plan(WORKLOAD, (find("lawa"), find("constant+lawa")), (0,), Budget(1.0), RATE)
