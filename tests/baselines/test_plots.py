"""The plots: what they show against the numbers they are made of, and who is told apart by what."""

import dataclasses

import numpy as np
import pytest
from matplotlib.container import BarContainer
from scipy import stats

from baselines.analysis import plots
from baselines.analysis.intervals import estimate
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find
from baselines.training.results import TrainingResult
from tests.support.comparisons import CURVES, comparison, run


def with_runs(made: Comparison, change) -> Comparison:
    runs = tuple(change(r) for r in made.runs)
    return dataclasses.replace(made, trainings=(TrainingResult(runs, 4.0, 4.1, 0.0),))


def test_the_curve_is_the_mean_and_its_bars_the_interval() -> None:
    (axes,) = plots.metric_over_rst(comparison(CURVES)).axes
    line = next(li for li in axes.get_lines() if li.get_label() == find("lawa").title)
    _, _, (bars,) = axes.containers[list(CURVES).index("lawa")].lines
    values = np.array(CURVES["lawa"])
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx(values.mean(axis=0))
    naive = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    for segment, low, high in zip(bars.get_segments(), naive.low, naive.high, strict=True):
        assert list(segment[:, 1]) == pytest.approx([low, high])


def test_no_two_methods_are_drawn_alike_in_colour_dash_and_marker() -> None:
    methods = [f"method {i}" for i in range(30)]
    styles = plots.styles(methods)
    assert len(set(styles.values())) == len(methods)
    # On paper a colour is a grey, so dash and marker alone tell them apart.
    assert len({(style.dash, style.marker) for style in styles.values()}) == len(methods)
    # The same in every plot, whatever else is drawn.
    made = comparison(CURVES)
    (axes,) = plots.metric_over_rst(made).axes
    (finals,) = plots.final_metric(made).axes
    titles = [find(method).title for method in CURVES]
    colours = {line.get_color() for line in axes.get_lines() if line.get_label() in titles}
    assert len(colours) == len(CURVES)
    assert {line.get_color() for line in finals.get_lines()} == colours


def at(axes, place: float) -> list:
    """The lines drawn at this height."""
    return [line for line in axes.get_lines() if set(line.get_ydata()) == {place}]


def names(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_finals_are_each_seed_the_mean_and_the_interval_on_both_parts() -> None:
    (axes,) = plots.final_metric(comparison(CURVES)).axes
    validation = [values[-1] for values in CURVES["lawa"]]
    drawn = []
    for place, finals in ((1.84, [value + 0.25 for value in validation]), (2.16, validation)):
        seeds, mean = at(axes, place)
        assert list(seeds.get_xdata()) == finals
        expected = estimate(finals)
        ends = [expected.low, np.mean(finals), expected.high]
        assert list(mean.get_xdata()) == pytest.approx(ends)
        assert mean.get_markevery() == [1]
        drawn.append((mean.get_linestyle(), mean.get_markerfacecolor()))
    (test, filled), (other, hollow) = drawn
    assert test != other
    assert filled != hollow == "white"
    assert names(axes) == [find(method).title for method in CURVES]


def test_without_the_test_part_the_validation_part_alone_is_drawn() -> None:
    made = comparison(CURVES)
    made = dataclasses.replace(made, plan=dataclasses.replace(made.plan, read_test=False))
    figure = plots.final_metric(made)
    (axes,) = figure.axes
    assert not at(axes, 1.84)
    assert len(at(axes, 2.16)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["validation part"]


def test_times_to_target_are_medians_and_name_the_misses() -> None:
    late = [[3.0, 2.9, 2.8, 2.7], [3.1, 2.9, 1.8, 1.6], [3.0, 2.1, 1.8, 1.7]]
    (axes,) = plots.time_to_target(comparison({**CURVES, "lawa": late})).axes
    lawa = f"{find('lawa').title}\n1 of 3 never"
    assert names(axes) == [find("constant").title, find("decayed").title, lawa]
    seeds, arrow, median = at(axes, 2)
    assert list(seeds.get_xdata()) == [3.0, 2.0]
    # The later of the two that came, for the third never does.
    assert list(median.get_xdata()) == [3.0]
    assert arrow.get_marker() == ">"
    edge = axes.get_xlim()[1]
    assert list(arrow.get_xdata()) == [edge]
    assert [list(s[:, 0]) for c in axes.collections for s in c.get_segments() if s[0, 1] == 2] == [
        [2.0, edge]
    ]


def test_what_most_seeds_never_reach_has_no_median() -> None:
    never = [[9.0] * 4, [9.0] * 4, [3.0, 2.1, 1.8, 1.7]]
    (axes,) = plots.time_to_target(comparison({**CURVES, "lawa": never})).axes
    seeds, arrow = at(axes, 2)
    assert (list(seeds.get_xdata()), arrow.get_marker()) == ([2.0], ">")
    assert "2 of 3 never" in names(axes)[2]


def test_the_account_stacks_up_to_what_was_charged() -> None:
    account = (
        {"operation": "train_step", "times": 10, "seconds": 3.0, "charged": True},
        {"operation": "evaluate", "times": 4, "seconds": 0.5, "charged": False},
        {"operation": "collect", "times": 2, "seconds": 0.25, "charged": True},
    )
    made = with_runs(comparison(CURVES), lambda r: dataclasses.replace(r, account=account))
    (axes,) = plots.account(made).axes
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    assert [bar.get_label() for bar in bars] == ["train_step", "collect", "evaluate (not charged)"]
    for place in range(len(CURVES)):
        assert [bar[place].get_x() for bar in bars] == pytest.approx([0.0, 3.0, 3.25])
        assert [bar[place].get_width() for bar in bars] == pytest.approx([3.0, 0.25, 0.5])
    assert len({bar[0].get_hatch() for bar in bars}) == len(bars)
    # Of 3.25 s that are charged, 0.25 s are not training.
    assert {text.get_text().strip() for text in axes.texts} == {"7.7%"}


@pytest.mark.parametrize("failed", ["some", "all"])
def test_failed_runs_and_single_seeds_are_drawn_as_far_as_they_go(failed: str) -> None:
    one = comparison({name: seeds[:1] for name, seeds in CURVES.items()})
    assert "no interval" in plots.metric_over_rst(one).axes[0].get_title()
    made = with_runs(
        comparison(CURVES),
        lambda r: (
            run(r.method, r.seed, [3.0, float("nan")], "no finite number")
            if failed == "all" or (r.method, r.seed) == ("lawa", 1)
            else r
        ),
    )
    for drawn in (one, made):
        for name, figure in plots.figures(drawn).items():
            figure.canvas.draw()
            assert figure.axes[0].get_title(), name
    (axes,) = plots.final_metric(made).axes
    failures = ["", "", "1 of 3 failed"] if failed == "some" else ["3 of 3 failed"] * 3
    assert [name.partition("\n")[2] for name in names(axes)] == failures
