"""The study of recipes: its answers against naive ones, and its command in a short form."""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import pytest

from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.methods.names import find
from baselines.training.results import TrainingResult
from baselines.workloads import load
from tests.support.comparisons import WORKLOAD, run
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from timing import Budget

STUDIES = Path(__file__).parent.parent.parent / "studies"
sys.path.insert(0, str(STUDIES))
import no_train_no_gain as study  # noqa: E402
import recipe_answers as answers  # noqa: E402

sys.path.remove(str(STUDIES))
LION, LION_LAWA = "lion+decayed", "lion+decayed+lawa"
# The metric on the test part, by seed.
ENDS = {
    "decayed": [1.0, 1.1, 1.2],
    "lawa-decayed": [0.99, 1.09, 1.19],
    LION: [1.3, 1.4, 1.45],
    LION_LAWA: [0.8, 0.85, 0.9],
}


def comparison(ends: dict[str, list[float]], failure: str | None = None) -> Comparison:
    plan = Plan(WORKLOAD, tuple(map(find, ends)), (0, 1, 2), Budget(4.0), 0.1, 4)
    runs = tuple(
        run(name, seed, [2.0, value], failure if name == LION else None, value)
        for name, of in ends.items()
        for seed, value in enumerate(of)
    )
    profile = profile_of([COSTS], plan.signature)
    return Comparison(plan, profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))


def test_the_answers_are_those_of_a_naive_count_and_a_loss_is_said() -> None:
    made = comparison(ENDS)
    free = Comparison(
        dataclasses.replace(made.plan, free=("collect",)), made.profile, made.trainings
    )
    done = answers.Study([made], [free])
    found = answers.findings(done)
    pays, _, adds, more = found.values()
    ratios = [a / b for a, b in zip(ENDS[LION], ENDS["decayed"], strict=True)]
    assert pays[LION][0].mean == pytest.approx(statistics.geometric_mean(ratios) - 1)
    assert adds[LION][0].mean < 0 < pays[LION][0].mean
    by_seed = [
        (a / b) / (c / d)
        for a, b, c, d in zip(
            *(ENDS[n] for n in (LION_LAWA, LION, "lawa-decayed", "decayed")), strict=True
        )
    ]
    assert more[LION][0].mean == pytest.approx(statistics.geometric_mean(by_seed) - 1)
    text = answers.page(done, found, "python study.py")
    assert "| Lion: fully decayed rate | WORSE: +26" in text
    assert "| Lion: LAWA of the decayed rate | BETTER: -22" in text
    assert "### 4 s, collect FREE" in text
    assert "but collect FREE: charged to no run" in text
    json.dumps(answers.numbers(done, found), allow_nan=False)


def test_a_run_that_failed_is_said_and_judged_by_nobody() -> None:
    made = comparison(ENDS, "it failed")
    done = answers.Study([made], [made])
    found = answers.findings(done)
    text = answers.page(done, found, "python study.py")
    assert "| Lion: fully decayed rate | a run FAILED |" in text
    numbers = answers.numbers(done, found)
    assert numbers["test_metric"]["charged"][0][LION] == ["failed"] * 3


def test_each_workload_has_the_recipes_that_it_is_fit_for() -> None:
    digits, deep = (study.methods_of(load(study.WORKLOADS[n])) for n in ("digits", "deep-pydocs"))
    assert not any("layer" in method.name for method in digits)
    assert any(method.name.startswith("rho-loss") for method in digits)
    assert any(method.name.startswith("layer-stacking") for method in deep)
    assert load(study.WORKLOADS["deep-pydocs"]).num_blocks == 4


def test_the_command_trains_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "RECIPES", ("selective-backprop",))
    reference = tmp_path / "reference.json"
    costs = {**COSTS, "score": 0.004, "evaluate": 0.01}
    plan = Plan(WORKLOAD, (find("decayed"),), (0,), Budget(1.0), 0.1)
    profile_of([costs], plan.signature).write(reference)
    options = ["--workload", "digits", "--seeds", "1", "--trials", "2", "--evaluations", "1"]
    paths = ["--reference", reference, "--folder", tmp_path / "runs", "--out", tmp_path / "out"]
    arguments = [*options, "--budgets", "0.1s,0.2s", *map(str, paths)]
    study.main(arguments)
    text = (tmp_path / "out" / "no-train-no-gain-digits.md").read_text()
    assert "Is it the idea, or its cost?" in text
    assert "score FREE" in text
    logs = {log: log.stat().st_mtime_ns for log in (tmp_path / "runs").rglob("events.jsonl")}
    # Two budgets, charged and free; of each two trials and the end, four methods.
    assert len(logs) == 2 * 2 * 3 * 4
    study.main(arguments)
    assert {log: log.stat().st_mtime_ns for log in logs} == logs
    assert (tmp_path / "out" / "no-train-no-gain-digits.md").read_text() == text
    assert "WARNING: of the reference profile, 1 process(es): at least" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--budgets 0.1x", "no length of time"),
        ("--trials 0", "--trials must be at least 1"),
        ("--reference nowhere.json", "nowhere.json"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        study.main(["--workload", "digits", *options.split()])
    assert said in capsys.readouterr().err.splitlines()[-1]
