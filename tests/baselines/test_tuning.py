"""Tuning gives every method the same trials, judged on the validation part alone."""

import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from baselines.analysis import report
from baselines.cli import dry_run
from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.manifest import Manifest
from baselines.experiment.plan import Plan, methods_by_training
from baselines.experiment.tuning import (
    CutOffError,
    columns,
    edges,
    rows,
    space_of,
    trials,
    tune,
    winners,
    write,
)
from baselines.methods.names import find
from baselines.training.loop import train
from baselines.training.results import Run, TrainingResult
from baselines.workloads import digits
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, WORKLOAD
from timing import POLICIES, Budget, ProfileError
from timing.cli import commandline

NAMES = ("constant", "decayed", "ema", "swa", "lawa(k=4)")
METHODS = tuple(map(find, NAMES))
LAWA = NAMES[-1]
PLAN = Plan(WORKLOAD, METHODS, (0, 1), Budget(0.12), 0.05, 2)
PROFILE = profile_of([COSTS], PLAN.signature)
COUNT = 4

OWN_METHOD = """
from dataclasses import dataclass
from baselines import AveragerPart, Range

@dataclass(frozen=True)
class Own(AveragerPart):
    space = {"k": Range(2, 5, whole=True), "every": Range(1, 1000, log=True, whole=True)}
    space["decay"] = Range(0.1, 0.5)

    k: int = 3
    every: int = 10
    decay: float = 0.2

    def __post_init__(self):
        if not self.decay < 1:
            raise ValueError(f"decay must be below 1: {self.decay}")

part = Own()
"""


@pytest.fixture(scope="module")
def tuned() -> Plan:
    return tune(dataclasses.replace(PLAN, trials=COUNT), PROFILE)


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN_METHOD)
    return str(path)


def place(plan: Plan, method: str, name: str, trial: Plan) -> float:
    """Where in its range a trial's setting lies, from 0 to 1."""
    within = space_of(plan, plan.method(method))[name]
    value = values_of(trial, method)[name]
    low, high, value = map(math.log if within.log else float, (within.low, within.high, value))
    return (value - low) / (high - low)


def values_of(plan: Plan, name: str) -> dict[str, object]:
    """What tuning may have set of a method."""
    method = plan.method(name)
    return {"learning_rate": plan.rate_of(method), **method.settings}


def naive_halton(index: int, base: int) -> Fraction:
    """The digits of the index mirrored at the point."""
    digits = []
    while index:
        index, digit = divmod(index, base)
        digits.append(digit)
    return sum((Fraction(d, base**place) for place, d in enumerate(digits, 1)), Fraction())


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.floats(1e-6, 1e3))
def test_the_points_are_those_of_the_halton_sequence(count, rate) -> None:
    plan = dataclasses.replace(PLAN, learning_rate=rate)
    plans = trials(plan, count)
    assert len(plans) == count
    for number, trial in enumerate(plans):
        expected = rate / 10 * 100 ** float(naive_halton(number + 1, 2))
        for method in METHODS:
            tried = trial.rate_of(trial.method(method.name))
            # The first is the plan's own, which the logarithm may miss by a bit.
            assert tried == pytest.approx(expected, rel=1e-12)
        if number:
            decay = place(plan, "ema", "ema.decay", trial)
            assert decay == pytest.approx(float(naive_halton(number + 1, 3)))


def test_the_rates_are_the_same_for_all_methods_so_that_they_share_a_training() -> None:
    for trial in trials(PLAN, 8):
        assert trial.names == NAMES
        assert len(set(map(trial.rate_of, trial.methods))) == 1
        assert methods_by_training(trial) == [("constant", "ema", "swa", LAWA), ("decayed",)]


def test_each_sixteenth_of_the_rates_is_tried_once() -> None:
    rates = [place(PLAN, LAWA, "learning_rate", trial) for trial in trials(PLAN, 15)]
    assert sorted(rates) == pytest.approx([n / 16 for n in range(1, 16)])


def test_rates_and_own_parameters_fill_the_space_better_than_chance() -> None:
    plans = trials(PLAN, 33)[1:]
    names = space_of(PLAN, PLAN.method("ema"))
    assert len(names) >= 2
    points = [[place(PLAN, "ema", name, trial) for name in names] for trial in plans]
    generator = np.random.default_rng(0)
    chance = [qmc.discrepancy(generator.random(np.shape(points))) for _ in range(100)]
    assert qmc.discrepancy(points) < min(chance)


def test_the_first_trial_is_the_plans_own_and_more_begin_with_those_of_fewer() -> None:
    many = trials(PLAN, 8)
    assert many[0].methods == PLAN.methods
    assert trials(PLAN, 3) == many[:3]
    for earlier, later in itertools.combinations(many, 2):
        for method in NAMES:
            assert values_of(earlier, method) != values_of(later, method)


def test_trials_have_a_seed_of_their_own_and_the_whole_budget() -> None:
    (seed,) = trials(PLAN, 1)[0].seeds
    for seeds in (PLAN.seeds, (seed, seed + 1)):
        plans = trials(dataclasses.replace(PLAN, seeds=seeds, trials=3), 3)
        (own,) = {trial.seeds for trial in plans}
        assert len(own) == 1
        assert own[0] not in seeds
        assert {trial.budget for trial in plans} == {PLAN.budget}
        # They are not tuned themselves.
        assert {(trial.trials, trial.tried) for trial in plans} == {(0, ())}


def test_what_a_method_does_not_tune_stays_as_it_is() -> None:
    for trial in trials(PLAN, 4):
        for method in METHODS:
            free = dict.fromkeys(space_of(PLAN, method))
            mine, given = (values_of(plan, method.name) for plan in (trial, PLAN))
            assert {**mine, **free} == {**given, **free}


def test_ranges_of_whole_and_of_logarithmic_numbers(own: str) -> None:
    plan = dataclasses.replace(PLAN, methods=(find("ema"), find(own)))
    found = [trial.method(own).averager for trial in trials(plan, 161)[1:]]
    ks = [one.k for one in found]
    assert {k: round(ks.count(k) / 40) for k in sorted(ks)} == dict.fromkeys((2, 3, 4, 5), 1)
    # As many from 1 to 31 as from 32 to 1000.
    assert sum(one.every <= 31 for one in found) == pytest.approx(80, abs=4)
    assert {type(one.k) for one in found} == {type(one.every) for one in found} == {int}
    assert {min(one.every for one in found), max(one.every for one in found)} <= {
        *range(1, 3),
        *range(900, 1001),
    }
    decays = [one.decay for one in found]
    assert 0.1 < min(decays) < 0.11
    assert 0.49 < max(decays) < 0.5
    assert statistics.fmean(decays) == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
def test_tuning_is_an_exhaustive_search_of_each_method_alone(tuned: Plan) -> None:
    plans = trials(PLAN, COUNT)
    for method in NAMES:
        alone = [
            train(
                *(WORKLOAD, [trial.method(method)], *trial.seeds, PLAN.budget, COSTS),
                *(trial.rate_of(trial.method(method)), PLAN.evaluations),
            )
            for trial in plans
        ]
        finals = [result.runs[0].final for result in alone]
        naive = min(range(COUNT), key=lambda number: finals[number])
        assert values_of(tuned, method) == values_of(plans[naive], method)
        mine = [trial for trial in tuned.tried if trial.method == method]
        assert [trial.value for trial in mine] == finals
        assert [trial.number for trial in mine] == list(range(COUNT))
        tried = [{"learning_rate": trial.learning_rate, **trial.settings} for trial in mine]
        assert tried == [values_of(trial, method) for trial in plans]
        charged = math.fsum(result.runs[0].rst_seconds for result in alone)
        assert tuned.tuning_rst_seconds[method] == pytest.approx(charged)
    # The first trial is not the best for all, or the search was for nothing.
    assert tuned.methods != PLAN.methods


@pytest.mark.slow
def test_a_shared_training_is_counted_once_in_what_was_trained(tuned: Plan) -> None:
    really = [compare(trial, PROFILE) for trial in trials(PLAN, COUNT)]
    trained = math.fsum(t.rst_seconds for comparison in really for t in comparison.trainings)
    assert math.fsum(t.trained_rst_seconds for t in tuned.tried) == pytest.approx(trained)
    assert trained < 0.6 * math.fsum(tuned.tuning_rst_seconds.values())


@pytest.mark.slow
def test_the_plan_is_otherwise_the_one_that_was_tuned(tuned: Plan) -> None:
    back = dataclasses.replace(tuned, methods=PLAN.methods, tried=(), trials=0)
    assert tuned.names == PLAN.names
    assert back == PLAN
    assert tuned.trials == COUNT
    assert tuned.read_test


@pytest.mark.slow
def test_the_test_part_is_never_read() -> None:
    read = []

    def evaluate_test(model) -> float:
        read.append(model)
        return WORKLOAD.evaluate_test(model)

    workload = dataclasses.replace(WORKLOAD, evaluate_test=evaluate_test)
    plan = dataclasses.replace(
        PLAN, workload=workload, methods=(find("constant"), find("lawa(k=4)")), trials=2
    )
    found = tune(plan, PROFILE)
    assert all(math.isfinite(trial.value) for trial in found.tried)
    assert read == []
    compare(found, PROFILE)
    assert len(read) == 4


def test_on_a_trial_that_was_cut_off_nothing_is_chosen() -> None:
    latest = [0.0]

    def make_optimizer(model, rate):
        latest[0] = rate
        return WORKLOAD.make_optimizer(model, rate)

    def loss(model, batch):
        if latest[0] < PLAN.learning_rate:
            raise RuntimeError("out of memory")
        return WORKLOAD.loss(model, batch)

    workload = dataclasses.replace(WORKLOAD, make_optimizer=make_optimizer, loss=loss)
    plan = dataclasses.replace(PLAN, workload=workload, methods=METHODS[:1], trials=3)
    tried = []

    def carry_out(*arguments) -> Comparison:
        tried.append(compare(*arguments))
        return tried[-1]

    said = r"tuning cannot choose.* trial 1 of constant: at step 0: .*RuntimeError: out of memory$"
    with pytest.raises(CutOffError, match=said):
        tune(plan, PROFILE, run_trial=carry_out)
    assert [bool(comparison.cut_off) for comparison in tried] == [False, True, False]


def run_of(method: str, value: float, rst_seconds: float) -> Run:
    from baselines.training.results import Point

    failure = None if math.isfinite(value) else "it failed"
    # Better in the middle than it ever ends: only the end counts.
    middle = Point(1, rst_seconds / 2, 0.01 / rst_seconds, 1.0, 0.1)
    end = Point(2, rst_seconds, value, 1.0, 0.1)
    return Run(method, 0, (middle, end), (), {}, 0.01, failure, share=1.0)


values = st.sampled_from([0.1, 0.2, 0.3, math.nan, math.inf])


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(values, values, st.floats(0.1, 0.4)), min_size=1, max_size=9))
def test_the_least_value_wins_the_first_of_equals_and_a_failure_never(results) -> None:
    plan = dataclasses.replace(PLAN, methods=(METHODS[0], METHODS[2]), trials=len(results))
    plans = trials(plan, len(results))
    comparisons = [
        Comparison(
            trial,
            PROFILE,
            (TrainingResult((run_of("constant", a, s), run_of("ema", b, 2 * s)), 3 * s, 1.0, 0.0),),
        )
        for trial, (a, b, s) in zip(plans, results, strict=True)
    ]
    found = winners(plan, comparisons)
    for place, method in enumerate(plan.names):
        best = 0
        for number, result in enumerate(results):
            value, least = result[place], results[best][place]
            if math.isfinite(value) and (not math.isfinite(least) or value < least):
                best = number
        assert values_of(found, method) == values_of(plans[best], method)
    assert found.tuning_rst_seconds == pytest.approx(
        {"constant": sum(s for *_, s in results), "ema": sum(2 * s for *_, s in results)}
    )
    assert [trial.trained_rst_seconds for trial in found.tried] == [
        1.5 * s for *_, s in results for _ in range(2)
    ]


def test_where_all_trials_diverge_the_plans_own_settings_stay() -> None:
    methods = (METHODS[0], METHODS[2])
    wild = dataclasses.replace(PLAN, methods=methods, learning_rate=1e30, trials=2)
    found = tune(wild, PROFILE)
    assert [trial.value for trial in found.tried] == [math.inf] * 4
    for method in wild.names:
        assert values_of(found, method) == values_of(wild, method)
    assert [row[3] for row in rows(found)[1:]] == ["all failed"] * 2
    assert columns(found)["validation_metric"] == ["failed"] * 4
    kept = Manifest.model_validate_json(Manifest.of(found).model_dump_json())
    assert kept.plan(WORKLOAD) == found


@pytest.mark.slow
def test_a_dry_run_counts_the_trials_and_no_shared_training_after_them() -> None:
    plan = dataclasses.replace(PLAN, trials=3)
    dry = dry_run.estimate(plan, PROFILE, timed_seconds=0.01)
    assert dry.runs == len(METHODS) * (3 + 2)
    # Tuned, each method may have a rate of its own.
    assert dry.trainings == 3 * 2 + len(METHODS) * 2
    assert dry_run.estimate(PLAN, PROFILE, timed_seconds=0.01).trainings == 2 * 2


def test_what_cannot_be_run_is_refused_before_any_training() -> None:
    def never(*_) -> Comparison:
        raise AssertionError("a trial was run")

    for count in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1 trial of each method, not {count}"):
            tune(dataclasses.replace(PLAN, trials=count), PROFILE, run_trial=never)
    plan = dataclasses.replace(PLAN, trials=2)
    with pytest.raises(ProfileError, match="measured with k=5 and this run has k=4"):
        tune(plan, profile_of([COSTS], {**PLAN.signature, "k": 5}), run_trial=never)
    with pytest.raises(ValueError, match="does not pay for one step"):
        tune(dataclasses.replace(plan, budget=Budget(1e-6)), PROFILE, run_trial=never)


def test_a_range_beyond_what_a_setting_can_be_is_refused(own: str) -> None:
    text = OWN_METHOD.replace('"k": Range(2, 5, whole=True)', '"decay": Range(0.1, 1.5)')
    Path(own).write_text(text.replace('    space["decay"] = Range(0.1, 0.5)\n', ""))
    plan = dataclasses.replace(PLAN, methods=(METHODS[0], find(own)))
    said = "own.py cannot tune own.decay from 0.1 to 1.5: own.decay: decay must be below"
    with pytest.raises(ValueError, match=said):
        trials(plan, 1)


@pytest.mark.slow
def test_the_runner_handed_in_carries_out_every_trial() -> None:
    seen: list[Plan] = []

    def runner(plan, profile, on_event) -> Comparison:
        seen.append(plan)
        return compare(plan, profile, on_event)

    plan = dataclasses.replace(PLAN, methods=METHODS[-1:], trials=2)
    assert tune(plan, PROFILE, run_trial=runner) == tune(plan, PROFILE)
    assert seen == trials(plan, 2)


@pytest.mark.slow
def test_the_table_is_one_that_mlflow_reads(tuned: Plan, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    write(tuned, tmp_path / "trials.json")
    table = pandas.read_json(tmp_path / "trials.json", orient="split")
    assert len(table) == COUNT * len(METHODS)
    chosen = table[table.chosen].set_index("method")
    best = table.loc[table.groupby("method").validation_metric.idxmin()].set_index("method")
    for method in NAMES:
        rate = tuned.rate_of(tuned.method(method))
        assert chosen.learning_rate[method] == pytest.approx(rate)
        assert chosen.trial[method] == best.trial[method]
        mine = table[table.method == method]
        assert mine.rst_seconds.sum() == pytest.approx(tuned.tuning_rst_seconds[method])
    assert json.loads((tmp_path / "trials.json").read_text())["columns"] == list(columns(tuned))


@pytest.mark.slow
def test_the_printed_rows_tell_winner_and_cost(tuned: Plan) -> None:
    head, *body = rows(tuned)
    assert head == ["method", "chosen", "of", "validation", "RST alone", "RST trained"]
    for method, row in zip(NAMES, body, strict=True):
        rate = tuned.rate_of(tuned.method(method))
        values = [t.value for t in tuned.tried if t.method == method]
        assert row[0] == find(method).title
        assert row[1].startswith(f"learning_rate={rate:.4g}")
        assert row[2:4] == [f"{COUNT} trials", f"{min(values):.4f}"]
        assert row[4] == f"{tuned.tuning_rst_seconds[method]:.2f} s"
    assert f"ema.decay={tuned.method('ema').settings['ema.decay']:.4g}" in body[2][1]


@pytest.mark.slow
def test_the_command_tunes_and_goes_on_from_what_it_kept(tmp_path, monkeypatch, capsys) -> None:
    from baselines.cli import session
    from baselines.cli.app import app

    def cut_off(*_, **__) -> None:
        raise commandline.CommandError("cut off before the comparison")

    monkeypatch.setattr(session, "Screen", cut_off)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    PROFILE.write(tmp_path / "reference.json")

    def run(options: str) -> tuple[int, str, str]:
        common = ("compare", "--no-publish", "--workload", "digits")
        options = f"--methods constant,lawa(k=4) {options}"
        monkeypatch.setattr(sys, "argv", ["baselines", *common, *options.split()])
        with pytest.raises(SystemExit) as stop:
            commandline.run(app)
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    options = "--trials 3 --lr 0.05 --seeds 2 --budget 0.12s --reference reference.json"
    code, out, err = run(options)
    assert code == 1
    assert "cut off before the comparison" in err
    methods = (METHODS[0], METHODS[-1])
    workload = digits.load()
    plan = dataclasses.replace(PLAN, workload=workload, methods=methods, trials=3, evaluations=30)
    found = tune(plan, PROFILE)
    assert "Tuning on nats per image, 3 trials a method" in out
    for row in rows(found)[1:]:
        assert all(cell in out for cell in row)
    (root,) = (tmp_path / "lawa-runs").iterdir()
    assert Manifest.read(root / "0.12s").plan(workload) == found
    write(found, tmp_path / "expected.json")
    kept = root / "0.12s-trials.json"
    assert kept.read_text() == (tmp_path / "expected.json").read_text()

    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*/events.jsonl")}
    assert len(before) == 3
    kept.unlink()
    assert run(options)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*/events.jsonl")} == before
    assert kept.read_text() == (tmp_path / "expected.json").read_text()

    code, out, err = run("--trials -1")
    assert (code, out) == (2, "")
    assert "--trials must be at least 0: -1" in err


def tried_of(rates: dict[float, float], k: Sequence[int] = ()) -> Plan:
    """The constant rate and LAWA as if these rates had come to these values."""
    methods = tuple(map(find, ("constant", "lawa")))
    plan = dataclasses.replace(PLAN, methods=methods, trials=len(rates))
    plans = [
        dataclasses.replace(
            plan,
            methods=(methods[0], methods[1].with_settings({"lawa.k": length})),
            learning_rate=rate,
            seeds=(9,),
        )
        for rate, length in itertools.zip_longest(rates, k, fillvalue=5)
    ]
    results = [
        TrainingResult((run_of("constant", value, 0.1), run_of("lawa", value, 0.1)), 0.1, 1.0, 0.0)
        for value in rates.values()
    ]
    pairs = zip(plans, results, strict=True)
    return winners(plan, [Comparison(trial, PROFILE, (result,)) for trial, result in pairs])


def test_what_was_chosen_at_an_edge_of_what_was_tried_is_warned_of() -> None:
    inside = {0.1: 0.3, 0.2: 0.1, 0.4: 0.2}
    assert edges(tried_of(inside)) == []
    assert edges(PLAN) == []
    assert "nothing was tuned" in edges(tried_of({0.1: 0.3}))[0]
    (said,) = edges(tried_of({0.1: 0.3, 0.2: 0.2, 0.4: 0.1}))
    assert said.startswith("WARNING: tuning chose at the edge of the 3 values that it tried")
    assert "(constant: learning_rate=0.4 is the highest; lawa: learning_rate=0.4 is the" in said
    (said,) = edges(tried_of({0.1: 0.1, 0.2: 0.2, 0.4: 0.3}))
    assert "constant: learning_rate=0.1 is the lowest" in said
    # Of a setting as of the rate.
    (said,) = edges(tried_of(inside, k=(4, 3, 5)))
    assert "(lawa: lawa.k=3 is the lowest)" in said
    # Where all failed nothing was chosen.
    assert edges(tried_of(dict.fromkeys(inside, math.inf))) == []


def test_an_edge_is_in_the_report() -> None:
    tuned = tried_of({0.1: 0.3, 0.2: 0.2, 0.4: 0.1})
    totals = dict.fromkeys(POLICIES, 0.1)
    runs = tuple(
        dataclasses.replace(run_of(name, 0.2, 0.1), seed=seed, totals=totals)
        for seed in tuned.seeds
        for name in tuned.names
    )
    made = Comparison(tuned, PROFILE, (TrainingResult(runs, 0.1, 1.0, 0.0),))
    assert edges(tuned)[0] in report.report_of(made).sentences
