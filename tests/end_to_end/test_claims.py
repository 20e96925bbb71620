"""The four claims: what they say of runs with a known answer, and their numbers against naive ones.

Each file is run as a command, in a short form, on trainings that they share.
"""

import contextlib
import io
import json
import math
import random
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import read_comparison
from baselines.experiment.plan import Plan, Task
from baselines.experiment.store import read_result
from baselines.methods.names import find
from baselines.training.results import Run, TrainingResult
from tests.support.comparisons import WORKLOAD, run
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from timing import Budget

CLAIMS = Path(__file__).parent.parent.parent / "studies"
sys.path.insert(0, str(CLAIMS))
import auto_interval  # noqa: E402
import averaging_and_decay  # noqa: E402
import equal_rst  # noqa: E402
import head_start  # noqa: E402
import runs  # noqa: E402

sys.path.remove(str(CLAIMS))
SCRIPTS = {
    "head-start": head_start,
    "equal-rst": equal_rst,
    "averaging-and-decay": averaging_and_decay,
    "auto-interval": auto_interval,
}
PLAN = Plan(WORKLOAD, (), (0, 1), Budget(0.2), 0.1)
METHODS = ("constant", "ema", "lawa", "decayed", "lawa-decayed", "ema-decayed")


class Kept:
    """What the four commands said, and what they left behind."""

    def __init__(self, folder: Path) -> None:
        reference = folder / "reference.json"
        profile_of([COSTS], PLAN.signature).write(reference)
        options = "--workload digits --seeds 2 --budget 0.2s"
        paths = ["--reference", str(reference), "--folder", str(folder / "runs")]
        self.arguments = [*options.split(), *paths, "--out", str(folder / "out")]
        self.out = folder / "out"
        self.said = {name: self.say(name) for name in SCRIPTS}
        (self.root,) = (folder / "runs").iterdir()

    def say(self, name: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            SCRIPTS[name].main(self.arguments)
        return said.getvalue()

    def numbers(self, name: str):
        return json.loads((self.out / f"{name}-digits.json").read_text())

    def results(self) -> dict[str, int]:
        """Every result, and when it was written."""
        paths = self.root.rglob("events.jsonl")
        return {str(p.relative_to(self.root)): p.stat().st_mtime_ns for p in paths}

    def compared(self, budget: str) -> Comparison:
        return read_comparison(self.root / budget)

    def windows(self) -> dict[str, list[Run]]:
        """The runs of each window and of the live weights, all of one training a seed."""
        names = {"constant": "constant", **{str(cell): cell.name for cell in runs.CELLS}}
        tasks = [Task(tuple(names.values()), seed) for seed in PLAN.seeds]
        trainings = [read_result(self.root / "0.2s-ablation", task) for task in tasks]
        return {name: [t.runs[i] for t in trainings] for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("claims"))


def interval(values: list[float]) -> dict[str, float]:
    """Of a mean."""
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def ratio(mine: list[float], theirs: list[float]):
    """Of the geometric mean of ratios, less one."""
    logs = interval(list(np.log(np.array(mine) / np.array(theirs))))
    return pytest.approx({name: np.exp(value) - 1 for name, value in logs.items()})


def value_from(run: Run, seconds: float) -> float:
    found = run.points[-1].value
    for point in reversed(run.points):
        if point.rst_seconds >= seconds:
            found = point.value
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_prints_its_findings_and_draws_them(kept: Kept, name: str) -> None:
    numbers = kept.numbers(name)
    assert numbers["findings"]
    for finding in numbers["findings"]:
        assert finding["verdict"] in ("supports", "refutes", "does not settle")
        whole = f'{finding["verdict"].upper()} "{finding["claim"]}": {finding["evidence"]}'
        assert whole in kept.said[name]
    assert "digits, 0.2 s of RST a run, 2 seeds, 95% intervals" in kept.said[name]
    assert (kept.out / f"{name}-digits.png").read_bytes().startswith(b"\x89PNG")


def test_all_share_their_trainings_and_do_none_again(kept: Kept) -> None:
    before = kept.results()
    folders = {Path(name).parts[0] for name in before}
    assert {"0.2s", "0.1s", "0.05s", "0.2s-ablation"} < folders
    assert all(name.startswith("0.2s-every-") for name in folders if name.count("-") == 2)
    one = {str(Path(name).parts[1]) for name in before if name.startswith("0.2s/")}
    trainings = ("constant", "decayed", "lawa-decayed", "ema-decayed")
    assert one == {f"{name}-seed-{seed}" for name in trainings for seed in (0, 1)}
    for name in SCRIPTS:
        assert kept.say(name) == kept.said[name]
    assert kept.results() == before


def test_the_head_start_is_what_a_naive_search_finds(kept: Kept) -> None:
    comparison = kept.compared("0.2s")
    rates = kept.numbers("head-start")["rates"]
    for name, pair in head_start.PAIRS.items():
        live, average = map(comparison.of, pair)
        for i, lead in enumerate(rates[name]["leads"], start=1):
            values = [[value_from(r, 0.2 * i / 40) for r in of] for of in (live, average)]
            assert lead == ratio(*values)
        assert len(rates[name]["leads"]) == 40
        for key, until in (("at_half", 0.1), ("at_end", 0.2)):
            saved = []
            for mine, theirs in zip(average, live, strict=True):
                due = [p for p in theirs.points if p.rst_seconds < until]
                due += [p for p in theirs.points if p.rst_seconds >= until][:1]
                best = min(due, key=lambda point: point.value)
                reached = [p for p in mine.points if p.value <= best.value] or [mine.points[-1]]
                saved.append(
                    (best.rst_seconds - reached[0].rst_seconds, best.step - reached[0].step)
                )
            found = rates[name][key]
            assert list(zip(found["rst_seconds_saved"], found["steps_saved"], strict=True)) == saved
        levels = [level["level"] for level in rates[name]["levels"]]
        assert levels == sorted(levels, reverse=True)
        assert levels[-1] == pytest.approx(max(min(p.value for p in r.points) for r in live))


def test_excesses_at_equal_rst_are_paired_on_the_test_part(kept: Kept) -> None:
    found = kept.numbers("equal-rst")["excess_over_decayed"]
    assert set(found) == {"constant", "lawa", "ema"}
    for method, values in found.items():
        for value, budget in zip(values, ("0.05s", "0.1s", "0.2s"), strict=True):
            comparison = kept.compared(budget)
            tests = [[r.test for r in comparison.of(m)] for m in (method, "decayed")]
            assert value == ratio(*tests)


def test_windows_and_shorter_runs_are_what_the_runs_give(kept: Kept) -> None:
    found = kept.numbers("averaging-and-decay")
    long, windows = kept.compared("0.2s"), kept.windows()
    for method in METHODS:
        tests = [r.test for r in long.of(method)]
        assert found["test_metric"][method] == pytest.approx(interval(tests))
    for window in found["windows_constant_rate"]:
        own = windows[f"k={window['k']} every={window['every']}"]
        assert window["metric"] == pytest.approx(interval([r.points[-1].value for r in own]))
        if window["every"] != "auto":
            steps = statistics.fmean(r.points[-1].step for r in own)
            expected = min(1.0, window["k"] * window["every"] / steps)
            assert window["share_of_training"] == expected
    for share, budget, seconds in (("0.25", "0.05s", 0.05), ("0.5", "0.1s", 0.1)):
        annealed = [r.points[-1].value for r in kept.compared(budget).of("decayed")]
        for method in ("lawa", "lawa-decayed"):
            mine = [value_from(r, seconds) for r in long.of(method)]
            assert found["excess_over_annealed"][method][share] == ratio(mine, annealed)


def test_auto_is_held_against_what_the_other_seeds_choose(kept: Kept) -> None:
    windows = kept.windows()
    moments = kept.numbers("auto-interval")["moments"]
    assert len(moments) == 20
    for i, moment in enumerate(moments, start=1):
        values = {
            every: [value_from(r, 0.2 * i / 20) for r in windows[f"k=5 every={every}"]]
            for every in ("auto", 2, 5, 12, 30, 80, 200)
        }
        fixed = [every for every in values if every != "auto"]
        # Of two seeds, the other one chooses.
        chosen = [min(fixed, key=lambda every: values[every][1 - seed]) for seed in (0, 1)]
        assert moment["best_fixed"] == chosen
        rival = [values[every][seed] for seed, every in enumerate(chosen)]
        assert moment["excess_over_best_fixed"]["auto"] == ratio(values["auto"], rival)


def made(curves: dict[str, list[float]], budget: float = 20.0, spread: float = 0.001) -> Comparison:
    """Five seeds of runs with these values at 1, 2, ... s; on the test part what they end with."""
    draws = random.Random(0)
    found = []
    for method, values in curves.items():
        for seed in range(5):
            own = [value * math.exp(draws.gauss(0, spread)) for value in values]
            found.append(run(method, seed, own, test=own[-1]))
    methods = tuple(map(find, curves))
    plan = Plan(WORKLOAD, methods, tuple(range(5)), Budget(budget), 0.1, int(budget))
    profile = profile_of([{"train_step": 0.1}], plan.signature)
    return Comparison(plan, profile, (TrainingResult(tuple(found), 4.0, 4.1, 0.0),))


FALLING = [3.0 - 0.1 * i for i in range(20)]
# Ten evaluations ahead at first, and none at the end.
CATCHING_UP = [max(1.1, value - 1.0 + 0.05 * i) for i, value in enumerate(FALLING)]
CATCHING_UP[-1] = FALLING[-1]


def verdicts(findings) -> list[str]:
    return [finding.verdict for finding in findings]


def test_a_head_start_is_supported_refuted_or_left_open() -> None:
    ahead = {"constant": FALLING, "lawa": [value - 0.5 for value in FALLING]}
    behind = {"decayed": FALLING, "lawa-decayed": [value + 0.5 for value in FALLING]}
    findings, _ = head_start.examine(made({**ahead, **behind}))
    assert verdicts(findings)[::2] == ["supports", "refutes"]
    assert "shown ahead at 20 of 20 evaluations and behind at 0" in findings[0].evidence
    noisy = made({**ahead, **behind}, spread=2.0)
    assert verdicts(head_start.examine(noisy)[0])[::2] == ["does not settle"] * 2


def test_a_head_start_that_shrinks_is_told_from_one_that_grows() -> None:
    growing = [3.0 - 0.1 * i - 0.05 * i for i in range(20)]
    curves = {"constant": FALLING, "lawa": growing}
    curves |= {"decayed": FALLING, "lawa-decayed": CATCHING_UP}
    findings, numbers = head_start.examine(made(curves, spread=1e-4))
    assert verdicts(findings)[1::2] == ["refutes", "supports"]
    half, end = (numbers["rates"]["decayed rate"][key] for key in ("at_half", "at_end"))
    assert min(half["rst_seconds_saved"]) > 4
    assert max(end["rst_seconds_saved"]) <= 1


def test_a_difference_of_a_step_of_the_grid_does_not_settle_it() -> None:
    # Five evaluations ahead at half of the budget, and four at the end.
    shifted = [FALLING[min(i + 5, 19)] - (0.0 if i < 14 else 0.001) for i in range(20)]
    shifted[14] = FALLING[18]
    curves = {"constant": FALLING, "lawa": shifted, "decayed": FALLING, "lawa-decayed": shifted}
    findings, numbers = head_start.examine(made(curves, spread=0.0))
    saved = numbers["rates"]["decayed rate"]
    shrink = saved["at_half"]["rst_seconds_saved"][0] - saved["at_end"]["rst_seconds_saved"][0]
    assert shrink == 1
    assert findings[1].verdict == "does not settle"


def test_what_is_never_reached_refutes_nothing() -> None:
    # Eight seconds late at half of the budget, and never there at the end: that is no less late.
    late = [3.0] * 17 + [2.05] * 3
    curves = {"constant": FALLING, "lawa": late, "decayed": FALLING, "lawa-decayed": late}
    findings, _ = head_start.examine(made(curves, spread=1e-4))
    assert verdicts(findings)[1::2] == ["does not settle"] * 2
    assert "never reached in 5 of 5 seeds" in findings[1].evidence


@pytest.mark.parametrize(
    ("shares", "spread", "verdict"),
    [
        ((1.05, 1.05, 1.05), 0.001, "supports"),
        ((1.05, 1.0, 1.0), 0.001, "supports"),
        # A gain at one of the budgets is enough.
        ((1.05, 1.05, 0.9), 0.001, "refutes"),
        ((1.05, 1.05, 0.99), 0.001, "does not settle"),
        ((1.05, 1.05, 1.05), 0.2, "does not settle"),
    ],
)
def test_a_gain_at_equal_rst_survives_or_not(shares, spread, verdict) -> None:
    comparisons = [
        made({"constant": [2.0], "decayed": [1.0], "lawa": [share], "ema": [share]}, spread=spread)
        for share in shares
    ]
    assert verdicts(equal_rst.examine(comparisons)[0]) == [verdict, verdict]


def decay_findings(
    ends: dict[str, float],
    windows: dict[int, float],
    spread: float = 0.001,
    annealed_end: float = 1.2,
):
    """The findings on runs that end with these; windows of k=5 by interval, of 200 steps."""
    curves = {method: [end + 0.5] * 9 + [end] * 11 for method, end in ends.items()}
    long = made(curves, spread=spread)
    annealed = {
        share: made({"decayed": [annealed_end]}, 20 * share, spread) for share in (0.25, 0.5)
    }
    cells = {cell.name: [windows.get(cell.every, 1.0)] * 20 for cell in runs.CELLS}
    decayed = {horizon: long.of("lawa-decayed") for horizon in (0.1, 0.3)}
    decayed[0.01] = long.of("ema-decayed")
    return averaging_and_decay.examine(long, annealed, made(cells, spread=spread), decayed)


ENDS = {"constant": 1.5, "ema": 1.2, "lawa": 1.2, "decayed": 1.0}


def test_claims_on_decay_hold_where_they_hold() -> None:
    ends = {**ENDS, "lawa-decayed": 1.0, "ema-decayed": 1.0}
    findings, numbers = decay_findings(ends, {2: 0.9})
    best, alone, constant, decayed, lawa, lawa_decayed = findings
    assert verdicts([best, alone, constant, decayed]) == ["supports"] * 4
    # Read at a quarter where it has 1.7, and at a half where it has 1.2.
    assert lawa.verdict == "refutes"
    assert "+41.7%" in lawa.evidence
    assert lawa_decayed.verdict == "refutes"
    shares = {w["share_of_training"] for w in numbers["windows_constant_rate"] if w["k"] == 5}
    assert shares == {0.05, 0.125, 0.3, 0.75, 1.0, 0.1}


def test_claims_on_decay_are_refuted_where_they_fail() -> None:
    ends = {**ENDS, "lawa": 1.0, "ema": 1.0, "lawa-decayed": 1.1, "ema-decayed": 1.2}
    findings, _ = decay_findings(ends, {30: 0.9}, annealed_end=2.0)
    assert verdicts(findings) == ["refutes"] * 4 + ["supports"] * 2


def test_claims_on_decay_are_left_open_where_seeds_differ_too_much() -> None:
    ends = {**ENDS, "lawa-decayed": 1.0, "ema-decayed": 1.0}
    findings, _ = decay_findings(ends, {}, spread=0.5)
    assert verdicts(findings) == ["does not settle"] * 6


@pytest.mark.parametrize(
    ("auto", "spread", "verdict"),
    [
        ([1.0] * 20, 0.001, "supports"),
        # Worse at one moment only.
        ([1.0] * 19 + [1.1], 0.001, "refutes"),
        ([1.0] * 20, 0.2, "does not settle"),
    ],
)
def test_auto_is_judged_at_every_moment(auto, spread, verdict) -> None:
    early, late = [1.0] * 10 + [2.0] * 10, [2.0] * 10 + [1.0] * 10
    curves = {cell.name: early if cell.every == 2 else late for cell in auto_interval.FIXED}
    comparison = made({**curves, auto_interval.AUTO.name: auto}, spread=spread)
    (finding,), numbers = auto_interval.examine(comparison)
    assert finding.verdict == verdict
    if spread < 0.1:
        assert set(numbers["moments"][0]["best_fixed"]) == {2}
        assert 2 not in numbers["moments"][-1]["best_fixed"]


def test_among_many_parts_chance_refutes_none() -> None:
    # Above by 2% on the average: refuted at 5%, not at a twentieth of that.
    mine = [1.0 + share for share in (0.005, 0.01, 0.02, 0.03, 0.035)]
    part = (mine, [1.0] * 5)
    assert runs.decide_all([part], below=0.003) == "refutes"
    even = ([0.9, 0.901, 0.9, 0.901, 0.9], [1.0] * 5)
    assert runs.decide_all([part, *[even] * 19], below=0.003) == "does not settle"
    worse = ([value + 1 for value in mine], [1.0] * 5)
    assert runs.decide_all([worse, *[even] * 19], below=0.003) == "refutes"


def test_one_seed_bears_no_conclusion() -> None:
    assert runs.decide(runs.relative_difference([2.0], [1.0]), above=0) == "does not settle"
    assert runs.percent(runs.relative_difference([2.0], [1.0])) == "+100.0% (one seed, no interval)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 0", "--seeds must be at least 1: 0"),
        ("--budget soon", "'soon' is no length of time"),
        ("--budget 0.01s", "does not pay for one step"),
        ("--reference nowhere.json", "nowhere.json"),
    ],
)
def test_wrong_options_are_refused(kept: Kept, capsys, tmp_path, options, message) -> None:
    folder = ["--folder", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        equal_rst.main([*kept.arguments, *folder, *options.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("events.jsonl"))


def test_a_failed_run_ends_it_with_its_name() -> None:
    failed = made({"constant": [1.0]}, 1.0)
    broken = TrainingResult((run("lawa", 3, [1.0], "no finite number"),), 1.0, 1.0, 0.0)
    comparison = Comparison(failed.plan, failed.profile, (*failed.trainings, broken))
    with pytest.raises(SystemExit, match="error: lawa, seed 3, failed: no finite number"):
        runs.ended(comparison)
