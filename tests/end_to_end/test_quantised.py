"""The study of rounded weights: its answers against naive ones, and its command in a short form."""

import dataclasses
import json
import math
import random
import statistics
import sys
from pathlib import Path

import pytest
from scipy import stats

from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.methods.names import find
from baselines.training.results import Run, TrainingResult
from baselines.training.rounding import Rounded
from baselines.workloads import load
from tests.support.comparisons import WORKLOAD, run
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from timing import Budget

STUDIES = Path(__file__).parent.parent.parent / "studies"
sys.path.insert(0, str(STUDIES))
import quantised as study  # noqa: E402
import quantised_answers as answers  # noqa: E402
import quantised_report as report  # noqa: E402

sys.path.remove(str(STUDIES))
SEEDS = tuple(range(5))
# What each rounding multiplies the metric by, of a method that loses little and of one that does.
FLAT = {"int8": 1.0, "int4": 1.02, "int3": 1.2, "int4g32": 1.01, "int3g32": 1.1}
SHARP = {"int8": 1.0, "int4": 1.2, "int3": 2.0, "int4g32": 1.03, "int3g32": 1.5}


def made(
    ends: dict[str, tuple[float, dict[str, float], float]], budget: float = 10.0
) -> Comparison:
    """Ten points that end with a metric, what roundings make of it, and the weights' error."""
    draws = random.Random(0)
    found = []
    for method, (end, factors, error) in ends.items():
        for seed in SEEDS:
            noise = math.exp(draws.gauss(0, 0.002))
            values = [end * noise * (2 - i / 10) for i in range(1, 11)]
            # Up to half of the budget rounding costs half as much.
            points = [
                {
                    name: value * factor ** (0.5 if i < 5 else 1.0)
                    for name, factor in factors.items()
                }
                for i, value in enumerate(values)
            ]
            made_run = run(method, seed, values, test=values[-1])
            found.append(
                dataclasses.replace(
                    made_run,
                    points=tuple(
                        dataclasses.replace(point, read=read)
                        for point, read in zip(made_run.points, points, strict=True)
                    ),
                    read_test=points[-1],
                    rounded={
                        name: Rounded(name, (3, 9), (90, 99), 4.5, error, 0, ()) for name in factors
                    },
                )
            )
    methods = tuple(map(find, ends))
    plan = Plan(WORKLOAD, methods, SEEDS, Budget(budget), 0.1, 10, read=study.READINGS)
    return Comparison(plan, profile_of([COSTS], plan.signature), _one(found))


def _one(runs: list[Run]) -> tuple[TrainingResult, ...]:
    return (TrainingResult(tuple(runs), 4.0, 4.1, 0.0),)


ENDS = {
    "constant": (1.5, FLAT, 0.1),
    "decayed": (1.0, SHARP, 0.1),
    "wsd": (1.0, SHARP, 0.1),
    "lawa": (1.1, FLAT, 0.1),
    # Read as int3 as good as the decayed rate, and behind elsewhere.
    "ema": (2.0 / 1.2, FLAT, 0.1),
    "lawa-decayed": (1.0, SHARP, 0.1),
    "ema-decayed": (0.9, SHARP, 0.1),
}


def studied(
    ends: dict[str, tuple[float, dict[str, float], float]], wide: dict[str, float] = FLAT
) -> answers.Study:
    horizons = {"constant rate": {"lawa(every=2)": 0.01, "lawa(every=20)": 0.1}}
    windows = made({"lawa(every=2)": (1.1, SHARP, 0.1), "lawa(every=20)": (1.2, wide, 0.1)})
    return answers.Study([made(ends, 5.0), made(ends)], windows, horizons)


def by_claim(done: answers.Study) -> dict[str, tuple[str, str]]:
    return {found.claim: (found.verdict, found.evidence) for found in answers.findings(done)}


def test_the_order_is_told_at_each_precision_and_losses_are_said() -> None:
    found = by_claim(studied(ENDS))
    claim = "in some precision {} ends better than the fully decayed rate"
    verdict, evidence = found[claim.format("LAWA of the constant rate")]
    assert verdict == "supports"
    assert "under 10 s BETTER as int4, int3, int3g32 and WORSE as float, int8, int4g32" in evidence
    assert evidence.count("under 5 s") == 1
    assert found[claim.format("EMA of the constant rate")][0] == "does not settle"
    always = {**ENDS, "ema": (3.0, FLAT, 0.1)}
    assert by_claim(studied(always))[claim.format("EMA of the constant rate")][0] == "refutes"
    assert found[claim.format("LAWA of the decayed rate")][0] == "does not settle"
    assert found[claim.format("EMA of the decayed rate")][0] == "supports"


def test_a_difference_is_that_of_runs_of_one_seed_read_alike() -> None:
    comparison = made(ENDS)
    found = answers.against(comparison, "lawa", "decayed")["int4"]
    logs = [
        math.log(mine.read_test["int4"] / theirs.read_test["int4"])
        for mine, theirs in zip(comparison.of("lawa"), comparison.of("decayed"), strict=True)
    ]
    low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert found is not None
    assert found.mean == pytest.approx(math.expm1(statistics.fmean(logs)))
    assert (found.low, found.high) == pytest.approx((math.expm1(low), math.expm1(high)))


def test_what_rounding_costs_is_held_against_what_it_costs_the_decayed_rate() -> None:
    claim = "rounding to int4 costs LAWA of the constant rate less than the fully decayed rate"
    verdict, evidence = by_claim(studied(ENDS))[claim]
    assert verdict == "supports"
    # 1.02 / 1.2, whatever either ends with in float.
    assert "under 10 s int8 +0.0%" in evidence
    assert evidence.count("int4 -15.0%") == 2
    turned = {**ENDS, "decayed": (1.0, FLAT, 0.1), "lawa": (1.1, SHARP, 0.1)}
    assert by_claim(studied(turned))[claim][0] == "refutes"


def test_flatness_is_told_from_smaller_rounding_errors() -> None:
    claim = "for one rounding error of its weights the decayed rate loses more than {}"
    flat = claim.format("LAWA of the constant rate")
    verdict, evidence = by_claim(studied(ENDS))[flat]
    assert verdict == "supports"
    assert "+20.0% [+20.0%, +20.0%] for the decayed rate and +2.0%" in evidence
    assert "10.00% and 10.00% of them" in evidence
    # The same loss, all of it by weights that are off by so much more.
    more = 0.1 * math.sqrt(math.log(1.2) / math.log(1.02))
    same = by_claim(studied({**ENDS, "decayed": (1.0, SHARP, 1.5 * more)}))
    assert same[flat][0] == "refutes"
    free = {**ENDS, "lawa": (1.1, {**FLAT, "int4": 0.99}, 0.1)}
    assert by_claim(studied(free))[flat][0] == "does not settle"
    assert "rounding costs nothing" in by_claim(studied(free))[flat][1]


def test_a_jump_as_the_rate_falls_is_one_beyond_that_of_a_constant_rate() -> None:
    decayed = "what int4 adds grows as the rate falls (fully decayed rate)"
    verdict, evidence = by_claim(studied(ENDS))[decayed]
    assert verdict == "supports"
    # The square roots of 1.2 and 1.02, then these.
    assert "+9.5% at 50% of the budget and +20.0% at its end" in evidence
    assert "the constant rate +1.0% and +2.0%" in evidence
    alike = {**ENDS, "constant": (1.5, SHARP, 0.1)}
    assert by_claim(studied(alike))[decayed][0] == "does not settle"


def test_a_longer_window_pays_more_or_less_where_weights_are_coarse() -> None:
    claim = "under the constant rate a longer window of LAWA pays more read as int4 than in float"
    assert by_claim(studied(ENDS))[claim][0] == "supports"
    sharper = {**SHARP, "int4": 1.5}
    assert by_claim(studied(ENDS, sharper))[claim][0] == "refutes"


def test_what_is_not_finite_is_said_and_drawn_by_nobody() -> None:
    broken = {**ENDS, "lawa": (1.1, {**FLAT, "int3": math.inf, "int4": math.inf}, math.nan)}
    done = studied(broken)
    found = by_claim(done)
    order = "in some precision LAWA of the constant rate ends better than the fully decayed rate"
    assert "int3 NOT FINITE" in found[order][1]
    cost = "rounding to int4 costs LAWA of the constant rate less than the fully decayed rate"
    assert found[cost][0] == "does not settle"
    flat = "for one rounding error of its weights the decayed rate loses more than LAWA of the "
    assert found[f"{flat}constant rate"][0] == "does not settle"
    numbers = report.numbers(done)
    json.dumps(numbers, allow_nan=False)
    assert numbers["budgets"][0]["test_metric"]["lawa"]["int3"] == ["not finite"] * 5
    assert report.draw(done).axes


@pytest.mark.slow
def test_the_command_trains_once_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference.json"
    plan = Plan(load(study.WORKLOADS["regression"]), (find("decayed"),), (0,), Budget(1.0), 0.01)
    profile_of([{**COSTS, "evaluate": 0.01}], plan.signature).write(reference)
    paths = ["--reference", reference, "--folder", tmp_path / "runs", "--out", tmp_path / "out"]
    # One budget: a model of each method is exported under each, which takes longer than to train.
    options = "--workload regression --budgets 0.1s --seeds 2 --trials 1 --evaluations 2"
    arguments = [*options.split(), *map(str, paths)]
    study.main(arguments)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "quantised-regression.json").read_text())
    assert len(found["findings"]) == 16
    assert all(f'"{finding["claim"]}"' in said for finding in found["findings"])
    assert set(found["budgets"][0]["test_metric"]["lawa"]) == set(study.READINGS)
    assert found["rounded"]["int4g32"].startswith("int4g32: 3 of 10 parameters rounded")
    assert (tmp_path / "out" / "quantised-regression.png").read_bytes().startswith(b"\x89PNG")
    logs = {log: log.stat().st_mtime_ns for log in (tmp_path / "runs").rglob("events.jsonl")}
    study.main(arguments)
    assert {log: log.stat().st_mtime_ns for log in logs} == logs
    assert capsys.readouterr().out == said
