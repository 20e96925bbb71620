"""Methods by name and from users' files, their settings, and what each needs measured."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baselines.experiment.calibration import calibration_target, measure_profile, operations
from baselines.experiment.comparison import Plan, methods_by_training
from baselines.methods.method import METHODS, canonical, file_digests, find, title_of
from baselines.methods.parts import AVERAGERS, SCHEDULES
from baselines.methods.settings import MethodError, Range, Settings
from baselines.training.loop import train
from baselines.training.method_run import max_evaluation_operations, max_step_operations
from baselines.workloads import digits
from tests.support.commands import command
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, SETTINGS, WORKLOAD, follow
from tests.support.user_files import assert_said_in_one_line, write
from timing import Budget
from timing.cli import commandline
from timing.rst.schedules import constant, cosine, linear

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "own_method.py"
OWN_COSTS = {**COSTS, "lookahead": 0.0004}

IMPORTS = """from baselines import Method, NoAveraging
from timing.rst.schedules import constant"""

# A method with this schedule, and this averager.
OWN = "from baselines.methods.method import Method\nfrom timing.rst.schedules import constant\n\
def method():\n    return Method('mine', {}, {})"


def train_with(name: str, costs=OWN_COSTS, budget: float = 1.0):
    (run,) = train(
        WORKLOAD, {name: find(name)}, 0, Budget(budget), costs, SETTINGS, evaluations=5
    ).runs
    return run


def test_a_name_is_that_of_the_table() -> None:
    assert find("lawa") is METHODS["lawa"]
    with pytest.raises(MethodError, match=r"'law' is none of constant, .*, nor a path to a \.py"):
        find("law")


def test_a_file_is_found_and_titled_by_its_stem() -> None:
    method = find(str(EXAMPLE))
    assert method.title == "own_method"
    assert method.schedule is linear
    # Once for each of its texts, so that a training's methods do not change under it.
    assert find(str(EXAMPLE)) is method


def test_another_text_of_a_file_is_another_method(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    path = write(tmp_path, text)
    assert find(path).schedule is linear
    before = file_digests(["lawa", path])
    write(tmp_path, text.replace("linear", "constant"))
    assert find(path).schedule is constant
    after = file_digests(["lawa", path])
    assert before.keys() == after.keys() == {path}
    assert before != after


def test_another_text_of_the_same_second_and_length_is_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    text = "from baselines.methods.method import METHODS\ndef method(): return METHODS['decayed']\n"
    path.write_text(text)
    moment = path.stat().st_mtime_ns
    assert find(str(path)).schedule.__name__ == "linear"
    path.write_text(text.replace("'decayed'", "'cosine' "))
    os.utime(path, ns=(moment, moment))
    assert find(str(path)).schedule.__name__ == "cosine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x = 1",
            r"mine.py defines no function `method`, which must return a baselines.methods.",
        ),
        (
            "def method():\n    return 3",
            r"method\(\) of .*mine.py must return .*; it returned a int",
        ),
        ("def method(:", r"mine.py, line 1: invalid syntax"),
        ("import nothing_like_it", r"mine.py, line 1: ModuleNotFoundError: No module named 'noth"),
        ("def method():\n    raise ValueError('a\\nb')", r"mine.py, line 2: ValueError: a b$"),
        ("def method(k):\n    return k", r"mine.py: TypeError: method\(\) missing 1 required"),
        ("import sys\nsys.exit(0)", r"mine.py, line 2: it ends the process \(sys.exit\): raise an"),
        ("def method():\n    raise GeneratorExit", r"mine.py, line 2: GeneratorExit$"),
        (OWN.format("lambda spent: 1 / spent", "None"), r"mine.py, line 4: ZeroDivisionError"),
        (OWN.format("lambda _: float('nan')", "None"), r"the schedule of \S*mine.py must .* nan$"),
        (OWN.format("lambda _: 'half'", "None"), r"the schedule of .* at 0% .* gives 'half'$"),
        (
            OWN.format("constant", "None, 1.5"),
            r"the share of .*mine.py must be above 0 and at most",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    assert_said_in_one_line(lambda: find(path), MethodError, said)


FAULTS = """
import sys
class Mine(NoAveraging):
    def {what}
def method():
    return Method("mine", constant, lambda model, optimizer, *_: Mine(model, optimizer))
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("after_step(self, spent): return self.nothing", r"AttributeError: 'Mine' object has no"),
        ("after_step(self, spent): sys.exit(0)", r"it ends the process \(sys\.exit\)"),
        ("evaluation_model(self): return self.model(1), {}", r"TypeError: "),
        ("after_step(self, spent): return 'unknown'", None),
    ],
)
def test_what_goes_wrong_in_training_is_a_line_with_its_place(
    what: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, IMPORTS + FAULTS.format(what=what))
    failure = str(train_with(path).failure)
    if said:
        assert re.search(rf"^at step \d+: \S*mine\.py, line 5: {said}", failure)
    else:
        # Nothing of the file is wrong, but what it gave: the traceback is kept.
        assert re.search(r"KeyError: .*'unknown' has no cost .*; its traceback is in ", failure)
        kept = Path(failure.rpartition(" is in ")[2])
        assert "Traceback" in kept.read_text()
        kept.unlink()
    assert "\n" not in failure
    assert capsys.readouterr() == ("", "")


def test_an_averager_that_cannot_be_made_is_told_with_its_place(tmp_path: Path) -> None:
    text = OWN.format("constant", "lambda model, *_: model.transformer.blocks")
    method = find(write(tmp_path, text))
    said = r"mine\.py, line 4: AttributeError: 'Sequential' object has no attribute 'transformer'"
    model = WORKLOAD.make_model()
    base = WORKLOAD.make_optimizer(model, 0.1)
    assert_said_in_one_line(
        lambda: method.averager(model, base, WORKLOAD, SETTINGS), MethodError, said
    )


def test_an_averager_of_the_table_in_a_file_is_that_of_the_table(tmp_path: Path) -> None:
    """So that what is known of it, such as that it reports live weights, is known here too."""
    text = (
        "from baselines.methods.method import METHODS\ndef method():\n    return METHODS['decayed']"
    )
    assert find(write(tmp_path, text)).averager is METHODS["decayed"].averager


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(MethodError, match=r"nowhere\.py: No such file or directory"):
        find("nowhere.py")


def test_the_example_trains_as_lookahead_does() -> None:
    run = train_with(str(EXAMPLE))
    assert run.failure is None
    assert run.counts["lookahead"] == run.steps // 6 > 10
    charged = sum(OWN_COSTS[name] * times for name, times in run.counts.items() if name in PAID)
    assert run.rst_seconds == pytest.approx(charged)

    # Against Lookahead written out, with the schedule on the same account.
    torch.manual_seed(0)
    model = WORKLOAD.make_model().train()
    optimizer = WORKLOAD.make_optimizer(model, SETTINGS.learning_rate)
    slow = [p.detach().clone() for p in model.parameters()]
    spent = 0.0
    for step, batch in enumerate(itertools.islice(WORKLOAD.batches(0), run.steps), start=1):
        optimizer.param_groups[0]["lr"] = SETTINGS.learning_rate * (1 - spent)
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
    own = write(tmp_path, EXAMPLE.read_text().replace("linear", "constant"))
    plan = Plan(WORKLOAD, ("constant", own, "lawa"), (0,), Budget(1.0), SETTINGS)
    assert methods_by_training(plan) == [("constant", "lawa"), (own,)]


def test_the_settings_reach_the_methods() -> None:
    for method, change in (
        ("ema", {"ema_decay": 0.5}),
        ("ema-growing", {"half_life_share": 0.3}),
        ("swa", {"swa_start": 0.3}),
        ("lawa", {"every": 2}),
        ("schedule-free", {"beta": 0.5}),
    ):
        assert change.keys() <= METHODS[method].space.keys()
        tuned = dataclasses.replace(SETTINGS, **change)
        (plain,) = follow(method, budget=0.6).runs
        (changed,) = train(
            WORKLOAD, {method: METHODS[method]}, 0, Budget(0.6), COSTS, tuned, 5
        ).runs
        assert changed.final != plain.final


@pytest.mark.parametrize("name", METHODS)
def test_what_tuning_may_try_are_settings_within_their_ranges(name: str) -> None:
    for setting, within in METHODS[name].space.items():
        for value in (within.low, within.high):
            chosen = int(value) if within.whole else value
            assert getattr(dataclasses.replace(SETTINGS, **{setting: chosen}), setting) == chosen
        default = getattr(Settings(0.1, 5, "auto"), setting)
        assert default == "auto" or within.low <= default <= within.high


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"ema_decay": 1.0}, {"half_life_share": 0.0}, {"swa_start": 1.5}, {"beta": -1}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1"):
            Settings(0.1, 5, "auto", **wrong)
    for low, high, log, whole in ((1, 1, False, False), (0, 1, True, False), (0.5, 2, False, True)):
        with pytest.raises(ValueError, match=f"from {low} to {high}"):
            Range(low, high, log, whole)


def test_a_profile_serves_every_method_of_the_table_but_schedule_free() -> None:
    found = operations(digits.load(), Settings(0.1, 3, "manual"))
    for name, method in METHODS.items():
        model = WORKLOAD.make_model()
        base = WORKLOAD.make_optimizer(model, 0.1)
        averager = method.averager(model, base, WORKLOAD, SETTINGS)
        missing = {
            *max_step_operations(averager),
            *max_evaluation_operations(averager),
        } - found.keys()
        assert missing == ({"schedule_free_step", "swap"} if name == "schedule-free" else set())


def test_what_is_asked_for_is_measured_too_and_runs() -> None:
    both = f"schedule-free, {EXAMPLE}"
    found = calibration_target("digits", k=3, methods=both)
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
    found = operations(watched, Settings(0.1, 3, "manual"), ["schedule-free"])
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


def test_an_operation_that_nobody_measures_is_refused(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("def operations", "def other")
    name = write(tmp_path, text)
    plan = Plan(digits.load(), (name,), (0,), Budget(1.0), SETTINGS)
    plan = dataclasses.replace(
        plan, workload=dataclasses.replace(plan.workload, source=("digits", None))
    )
    with pytest.raises(MethodError, match=r"mine\.py: the operations\(\) .* say how lookahead can"):
        measure_profile(plan, lambda *_: None)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    monkeypatch.delitem(sys.modules, "baselines.methods.averagers.schedule_free", raising=False)
    with pytest.raises(MethodError, match=r"schedule-free .* pip install schedulefree") as raised:
        train_with("schedule-free")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_table_needs_no_package_of_a_method() -> None:
    script = "import sys, baselines.methods.method; sys.exit('schedulefree' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_the_command_compares_with_it(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    plan = Plan(WORKLOAD, (), (0,), Budget(1.0), Settings(0.1, 5, "auto"))
    profile_of([OWN_COSTS] * 5, plan.signature).write(tmp_path / "reference.json")
    options = "--workload digits --seeds 2 --budget 0.3s --reference reference.json"
    done = command(tmp_path, "compare", *options.split(), "--methods", f"decayed,{EXAMPLE}")
    assert done.returncode == 0, done.stderr
    assert "│ own_method " in done.stdout
    assert f"{EXAMPLE}, seed 1: " in done.stdout


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
    assert "mine.py defines no function `method`" in capsys.readouterr().err


SUMS = [
    (schedule, averager, share)
    for schedule in SCHEDULES
    for averager in ("", *AVERAGERS)
    for share in (1.0, 0.3)
]


@pytest.mark.parametrize(("schedule", "averager", "share"), SUMS)
def test_any_schedule_goes_with_any_averager(schedule: str, averager: str, share: float) -> None:
    words = [schedule if share == 1 else f"{schedule}@{share:.0%}", *filter(None, [averager])]
    name = "+".join(words)
    # In any order, and once for all, as the trainings that are shared are told by it.
    method = find(name)
    assert find("+".join(reversed(words))) is method
    assert {canonical("+".join(order)) for order in itertools.permutations(words)} == {
        canonical(name)
    }
    assert find(canonical(name)) is method
    assert method.schedule is SCHEDULES[schedule].factor
    assert method.share == share
    parts = AVERAGERS.get(averager)
    assert method.space == (parts.space if parts else {})
    assert method.title == title_of(name)
    assert (parts.title if parts else "") in method.title


def test_no_two_sums_have_one_title() -> None:
    names = {
        canonical("+".join(filter(None, (f"{schedule}@{share:.0%}", averager))))
        for schedule, averager, share in SUMS
    }
    assert len({title_of(name) for name in names}) == len(names) == len(SUMS)


def test_a_sum_follows_its_schedule_to_its_share_and_charges_its_averager() -> None:
    run = train_with("lawa+cosine@50%", budget=0.5)
    assert {line["operation"] for line in run.account} >= {"collect", "average"}
    rates = [point.learning_rate for point in run.points]
    # Of half a cosine over what the run may spend: at each of its evaluations.
    for point, rate in zip(run.points, rates, strict=True):
        spent = point.rst_seconds / 0.5
        assert rate == pytest.approx(SETTINGS.learning_rate * cosine(spent), abs=0.005)
    assert run.share == 0.5


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "decayed+cosine": "has two schedules, decayed and cosine: give one",
        "lawa+decayed+ema": "has two averagers, lawa and ema: give one",
        "lawa+decay": "'decay' is neither a schedule (constant, decayed, cosine, wsd) nor an",
        "swa-cyclic+decayed": "swa-cyclic has a schedule and weights of its own: give it alone",
        "mine.py+lawa": "mine.py has a schedule and weights of its own: give it alone",
        "lawa@25%": "a share is of a schedule, such as decayed@25%, and not of lawa",
        "decayed@0%": "@0% is no share of the budget in whole percent, such as @25%",
        "decayed@25": "@25 is no share of the budget in whole percent",
        "decayed@101%+lawa": "@101% is no share",
        "+": "'' is neither a schedule",
    }.items(),
)
def test_a_sum_that_makes_no_sense_is_refused_in_a_line(name: str, said: str) -> None:
    for ask in (find, canonical):
        with pytest.raises(MethodError) as refused:
            ask(name)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    # What is read from a folder may be named anything.
    assert title_of(name) == name


def test_sums_of_the_constant_rate_share_its_training() -> None:
    plan = Plan(WORKLOAD, ("constant", "constant+lawa", "wsd+swa"), (0,), Budget(1.0), SETTINGS)
    assert methods_by_training(plan) == [("constant", "constant+lawa"), ("wsd+swa",)]
