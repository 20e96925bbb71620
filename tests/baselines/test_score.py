"""AlgoPerf's score: against integration on a fine grid, and as a command on kept comparisons."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.integrate import trapezoid
from typer.testing import CliRunner

from baselines.analysis import report, score
from baselines.analysis.performance_profile import performance_profile
from baselines.cli.app import app
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import read_comparison
from tests.support.comparisons import CURVES, comparison, kept
from timing import Budget

TIMES = st.floats(0.5, 100.0) | st.just(math.inf)
NEVER = [[9.0] * 4] * 3
GRID = np.linspace(1, 4, 30_001)


@pytest.mark.slow
@given(st.lists(st.fixed_dictionaries({"a": TIMES, "b": TIMES, "c": TIMES}), min_size=1))
def test_the_score_is_the_integral_of_the_profile(times: list[dict[str, float]]) -> None:
    for method in "abc":
        of_best = [score.ratios(each)[method] for each in times]
        # As the paper has it: count the workloads at each tau, and sum up.
        counts = np.zeros_like(GRID)
        for each in times:
            least = min(each.values())
            if math.isfinite(each[method]):
                counts += each[method] / least <= GRID
        naive = trapezoid(counts / len(times), GRID) / 3
        assert score.score(of_best) == pytest.approx(naive, abs=2e-4)
        some = GRID[::3000]
        profile = [score.profile(of_best, tau) for tau in some]
        assert profile == pytest.approx(counts[::3000] / len(times))


@given(st.lists(TIMES, min_size=1, max_size=6), st.floats(0.01, 100.0))
def test_a_score_depends_on_no_unit_and_its_ends_are_the_best_and_the_worst(
    times: list[float], unit: float
) -> None:
    here = dict(zip("abcdef", times, strict=False))
    there = {method: seconds * unit for method, seconds in here.items()}
    for method, ratio in score.ratios(here).items():
        assert score.ratios(there)[method] == pytest.approx(ratio)
        assert 0 <= score.score([ratio]) <= 1
    if math.isfinite(min(times)):
        best = min(here, key=lambda method: here[method])
        assert score.score([score.ratios(here)[best]]) == 1


def under(made: Comparison, seconds: float) -> Comparison:
    return dataclasses.replace(made, plan=dataclasses.replace(made.plan, budget=Budget(seconds)))


def test_a_method_is_scored_by_its_medians_with_misses_as_never() -> None:
    # Medians of 4, 3 and 2 s; then LAWA reaches the target with one seed of three.
    late = [[3.0, 2.9, 2.8, 2.7], [3.1, 3.0, 2.9, 2.8], [3.0, 2.1, 1.8, 1.7]]
    two = [comparison(CURVES), under(comparison({**CURVES, "lawa": late}), 8.0)]
    found = {each.method: each for each in score.scores(two)}
    assert found["constant"].ratios == (2.0, pytest.approx(4 / 3))
    assert found["decayed"].ratios == (1.5, 1.0)
    assert found["lawa"].ratios == (1.0, math.inf)
    assert found["lawa"].score == pytest.approx(0.5)
    assert found["decayed"].score == pytest.approx((2.5 / 3 + 1) / 2)
    assert found["constant"].score == pytest.approx((2 / 3 + (8 / 3) / 3) / 2)
    # The third seed reaches it, after 2 s, and is the best then.
    assert found["lawa"].by_seed == pytest.approx((0.5, 0.5, 1.0))
    assert [each.method for each in score.scores(two)] == ["decayed", "constant", "lawa"]
    head, first, *_, last = score.table(score.scores(two), two)
    assert head == ["method", "score", "each seed alone", "digits, 4 s", "digits, 8 s"]
    assert first == ["fully decayed rate", "0.917", "0.833 to 0.917", "1.50", "1.00"]
    assert last[0] == "LAWA of the constant rate"
    assert last[1:] == ["0.500", "0.500 to 1.000", "1.00", "never"]


def test_where_nobody_arrives_nobody_scores() -> None:
    (decayed, lawa) = score.scores([comparison({"decayed": NEVER, "lawa": NEVER})])
    assert decayed.ratios == lawa.ratios == (math.inf,)
    assert decayed.score == lawa.score == 0


def test_comparisons_of_other_seeds_have_no_score_by_seed() -> None:
    one = under(comparison({name: curves[:1] for name, curves in CURVES.items()}), 8.0)
    assert {each.by_seed for each in score.scores([comparison(CURVES), one])} == {()}


def test_what_cannot_be_scored_together_is_refused() -> None:
    made = comparison(CURVES)
    fewer = under(comparison({name: CURVES[name] for name in ("constant", "lawa")}), 8.0)
    policy = dataclasses.replace(
        made, plan=dataclasses.replace(made.plan, policy="mlperf", budget=Budget(8.0))
    )
    for others, said in (
        ([fewer], "digits, 8 s compares constant, lawa, and digits, 4 s constant, decayed, lawa"),
        ([policy], "digits, 8 s is under the policy mlperf"),
        ([made], "digits, 4 s is given twice"),
    ):
        with pytest.raises(ValueError, match=said):
            score.scores([made, *others])
    with pytest.raises(ValueError, match="at least one"):
        score.scores([])


def test_the_plot_is_the_profile_and_equal_lines_are_set_apart() -> None:
    same = score.Score("constant", "constant rate", (1.5, 1.0, 2.0))
    found = [
        same,
        dataclasses.replace(same, method="ema"),
        score.Score("lawa", "LAWA", (math.inf, 9.0, 4.0)),
    ]
    figure = performance_profile(found)
    (axes,) = figure.axes
    figure.canvas.draw()
    assert [line.get_drawstyle() for line in axes.get_lines()] == ["steps-post"] * 3
    for line, each in zip(axes.get_lines(), found, strict=True):
        # What is drawn just at and after each step is the share of ratios up to there.
        taus, shares = line.get_xdata(), line.get_ydata()
        assert (taus[0], taus[-1]) == (1, 4)
        for tau in GRID[::1000]:
            drawn = shares[np.searchsorted(taus, tau, side="right") - 1]
            assert drawn == sum(ratio <= tau for ratio in each.ratios) / 3
    first, second, _ = (line.get_transform().transform((2, 0.5)) for line in axes.get_lines())
    assert first[0] == second[0]
    assert 1 < second[1] - first[1] < 5
    assert axes.get_lines()[0].get_label() == "constant rate: 0.83"


def test_the_command_scores_folders_and_draws(tmp_path: Path) -> None:
    two = [comparison(CURVES), under(comparison(CURVES), 8.0)]
    folders = [str(kept(made, tmp_path / f"{i}")) for i, made in enumerate(two)]
    plot = tmp_path / "profile.png"
    done = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["score", *folders, "--plot", str(plot)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()
    line = next(each for each in said if "LAWA of the constant rate" in each)
    assert re.split("  +", line.strip())[1:] == [
        "1.000",
        "1.000 to 1.000",
        "1.00",
        "1.00",
    ]
    assert "mean over tau from 1 to 4" in done.output
    assert imread(plot).shape[0] > 300


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies in a JSON document."""
    inner = enumerate(value) if isinstance(value, list) else value.items()
    for key, below in inner:
        yield (*at, key)
        if isinstance(below, dict | list):
            yield from places(below, (*at, key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(comparison(CURVES), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_changed_file_of_a_comparison_is_scored_or_refused_in_a_line(
    whole: Path, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(whole.glob("4s/**/*.json*"))))
    before = path.read_text()
    lines = before.splitlines() if path.suffix == ".jsonl" else [before]
    number = data.draw(st.integers(0, len(lines) - 1))
    document = json.loads(lines[number])
    *above, last = data.draw(st.sampled_from(list(places(document))))
    at = document
    for key in above:
        at = at[key]
    if data.draw(st.booleans()):
        del at[last]
    else:
        odd = [None, [], {}, "", "[/red]", "x.py", -1, 0, 0.5, 10**400, math.nan, math.inf, True]
        at[last] = data.draw(st.sampled_from(odd))
    lines[number] = json.dumps(document)
    path.write_text("\n".join([*lines, ""]))
    try:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["score", str(whole)])
        assert done.exit_code in (0, 2), done.output
        assert not done.exception or isinstance(done.exception, SystemExit)
        if not done.exit_code:
            assert report.markdown(read_comparison(whole))
    finally:
        path.write_text(before)


@pytest.mark.parametrize("wrong", ["no folder", "twice", "no such image"])
def test_the_command_names_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    good = str(kept(comparison(CURVES), tmp_path / "good"))
    arguments, said = {
        "no folder": ([good, str(tmp_path / "away")], "away holds no comparison"),
        "twice": ([good, good], "is given twice"),
        "no such image": ([good, "--plot", str(tmp_path / "plot.nothing")], "--plot"),
    }[wrong]
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["score", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
