"""Readings of rounded weights in tables, sentences, plots and MLflow's metrics."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from matplotlib import rc_context

from baselines.analysis import ablation, html_report, read_as, report, tables
from baselines.analysis.figures import figures_of
from baselines.analysis.metric_over_bits import metric_over_bits
from baselines.experiment.ablation import WindowConfig, methods_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept, folders_of, read_comparison
from baselines.tracking import said, said_of_readings, saved_view
from baselines.training.results import Run
from baselines.training.rounding import Rounded
from tests.support import comparisons
from timing.statistics import mean_interval

# What rounding adds to the metric. In float the decayed rate is ahead of LAWA by 0.5 and more.
ADDED = {
    "constant": {"int8": 0.01, "int4": 1.0, "int2": math.inf},
    "decayed": {"int8": 0.01, "int4": 1.5, "int2": math.inf},
    "lawa": {"int8": 0.01, "int4": 0.2, "int2": 5.0},
}


def rounded(name: str, error: float) -> Rounded:
    bits = float(name[3:]) + 0.5
    return Rounded(name, (4, 6), (1000, 1010), bits, error, 0, ())


def read(run: Run, added: dict[str, float]) -> Run:
    """The run as if its rounded weights had measured so much more."""
    return dataclasses.replace(
        run,
        points=tuple(
            dataclasses.replace(point, read={name: point.value + x for name, x in added.items()})
            for point in run.points
        ),
        read_test={name: run.test + x for name, x in added.items()},
        rounded={name: rounded(name, 0.01 * (1 + run.seed)) for name in added},
    )


def comparison(curves: dict[str, list[list[float]]] = comparisons.CURVES) -> Comparison:
    made = comparisons.comparison(curves)
    (training,) = made.trainings
    runs = tuple(read(run, ADDED[run.method]) for run in training.runs)
    return Comparison(
        dataclasses.replace(made.plan, read=("float", "int8", "int4", "int2")),
        made.profile,
        (dataclasses.replace(training, runs=runs),),
    )


def test_a_rounding_that_changes_no_metric_is_warned_of() -> None:
    made = comparison()
    assert len(read_as.conditions(made)) == 1
    (training,) = made.trainings
    runs = tuple(read(run, {**ADDED[run.method], "int4": 0.0}) for run in training.runs)
    deaf = dataclasses.replace(made, trainings=(dataclasses.replace(training, runs=runs),))
    _, warning = read_as.conditions(deaf)
    assert warning.startswith("WARNING: read as int4, each metric is that of float")


def test_the_end_of_the_budget_has_a_column_a_reading() -> None:
    head, *body = tables.results(comparison())
    assert head[2:6] == [
        *("final test nats per image", "read as int8", "read as int4", "read as int2"),
    ]
    row = {cells[1]: cells for cells in body}["constant rate"]
    ends = [2.25 + 0.1 * seed for seed in range(3)]
    half = mean_interval(ends).high - statistics.fmean(ends)
    assert row[2] == f"{statistics.fmean(ends):.4f} ± {half:.4f}"
    assert row[4] == f"{statistics.fmean(ends) + 1:.4f} ± {half:.4f}"
    assert row[5] == "not finite"
    # Ranked by float, as without readings.
    plain = comparisons.comparison(comparisons.CURVES)
    assert [cells[:3] for cells in body] == [cells[:3] for cells in tables.results(plain)[1:]]


def test_runs_that_failed_and_readings_that_are_not_finite_are_told_apart() -> None:
    assert tables.metric_cell((1.0, math.nan, math.inf)) == (
        "1.0000 (1 of 3 failed, 1 of 3 not finite)"
    )
    assert tables.metric_cell((math.inf, math.inf)) == tables.NO_RUN
    assert tables.metric_cell((math.nan, math.inf)) == "not finite"


def test_each_reading_says_who_is_ahead_and_who_loses() -> None:
    found = report.report_of(comparison())
    plain = report.report_of(comparisons.comparison(comparisons.CURVES))
    *first, int8, int4, int2 = found.headline
    assert first == list(plain.headline)
    assert int8.startswith("Read as int8: fully decayed rate ends best, at ")
    assert "LAWA of the constant rate LOSES at the end to the fully decayed rate" in int8
    assert int4 == (
        "Read as int4: LAWA of the constant rate ends best, at 2.0500 nats per image: BETTER than "
        "all 2 others."
    )
    assert int2.startswith("Read as int2: LAWA of the constant rate ends at ")
    assert int2.endswith("constant rate and the fully decayed rate NOT FINITE with a seed.")


def test_gains_on_a_baseline_are_paired_by_seed() -> None:
    made = comparison()
    name = "Gain on fully decayed rate at the end, by how the weights are read"
    head, *body = read_as.gains(made)[name]
    assert head == ["method", "float", "int8", "int4", "int2"]
    cells = {row[0]: row[1:] for row in body}["LAWA of the constant rate"]
    theirs = {run.seed: run for run in made.of("decayed")}
    for reading, cell in zip(head[1:4], cells, strict=False):
        gains = [
            theirs[run.seed].test_as(reading) - run.test_as(reading) for run in made.of("lawa")
        ]
        wanted = mean_interval(gains)
        assert cell == f"{wanted.estimate:+.4f} [{wanted.low:+.4f}, {wanted.high:+.4f}]"
    assert cells[3] == read_as.NOT_COMPARED
    assert len(read_as.gains(made)) == len(read_as.AGAINST)


def test_how_far_rounding_moved_the_weights_is_shown() -> None:
    head, first, *_ = read_as.rounding_errors(comparison())
    assert head == ["method", "int8", "int4", "int2"]
    assert first[1].startswith("2.00 ± ")
    made = report.report_of(comparison())
    assert any(table.title == read_as.ERRORS for table in made.details)
    assert "int4: 4 of 6 parameters rounded" in made.conditions
    assert "charged to no run" in made.conditions


def test_without_readings_nothing_is_said_of_them() -> None:
    plain = comparisons.comparison(comparisons.CURVES)
    assert "read as" not in report.markdown(plain).lower()
    assert "metric-over-bits" not in figures_of(plain)
    assert not any("_as_" in name for name in tables.columns(plain))


def test_one_plot_has_a_line_a_method_over_the_bits() -> None:
    figure = figures_of(comparison())["metric-over-bits"]
    (axes,) = figure.axes
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["float", "int8\n8.5 bits", "int4\n4.5 bits", "int2\n2.5 bits"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "constant rate\nint2: a seed failed or not finite",
        "fully decayed rate\nint2: a seed failed or not finite",
        "LAWA of the constant rate",
    ]
    line = next(each for each in axes.containers[2].lines if each is not None)
    wanted = [
        statistics.fmean(run.test_as(reading) for run in comparison().of("lawa"))
        for reading in comparison().plan.read
    ]
    assert list(line.get_ydata()) == pytest.approx(wanted)


@pytest.mark.parametrize("worst", [7.0, 15.0, 300.0, 1e5, 1e14])
@pytest.mark.parametrize("parse_math", [True, False])
def test_a_logarithmic_axis_of_the_plot_has_plain_numbers(
    worst: float, parse_math: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADDED["lawa"], "int2", worst)
    # The commands draw no formulas, and a program that imports the package may.
    with rc_context({"text.parse_math": parse_math}):
        figure = metric_over_bits(comparison())
        figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    axis = axes.yaxis
    shown = [
        (tick.label1.get_text(), tick.get_loc())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if tick.label1.get_text() and low <= tick.get_loc() <= high
    ]
    assert 2 <= len(shown) <= 20
    for text, place in shown:
        assert float(text) == pytest.approx(place)


@pytest.mark.slow
def test_the_page_and_the_note_have_all_of_it(tmp_path: Path) -> None:
    root = comparisons.kept(comparison(), tmp_path)
    kept, made = Kept.read(folders_of(root)[0]), read_comparison(root)
    assert tables.columns(made) == tables.columns(comparison())
    page = html_report.page([(kept, made)])
    text = report.markdown(made)
    for words in ("Read as int4", "read as int2", "not finite", "Gain on fully decayed rate"):
        assert words in page
        assert words in text
    assert page.count("<img alt=") == 5
    assert "metric-over-bits" in page


def test_the_columns_have_every_seed_unrounded() -> None:
    table = tables.columns(comparison())
    lines = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    first = lines[0]
    assert (first["method"], first["seed"], first["final_metric"]) == ("constant", 0, 2.0)
    assert first["final_metric_as_int4"] == 3.0
    assert first["test_metric_as_int4"] == 3.25
    assert first["test_metric_as_int2"] == "not finite"
    json.dumps(table, allow_nan=False)


def test_mlflow_has_a_section_a_reading_and_says_what_is_not_finite() -> None:
    run = comparison().of("decayed")[0]
    assert said.point_metrics(run.points[-1])["read_as_int4/validation"] == 2.5
    metrics = said_of_readings.end_metrics(run)
    assert metrics["read_as_int4/final"] == 2.5
    assert metrics["read_as_int4/test"] == 2.75
    assert metrics["read_as_int4/relative_error"] == 0.01
    assert not any(math.isinf(value) or math.isnan(value) for value in metrics.values())
    assert "read_as_int2/final" not in metrics
    assert said_of_readings.not_finite(run) == {
        "read_as_int2": "not finite at 4 of 4 evaluations and on the test part"
    }
    # One level of sections, whatever the reading is called.
    assert said_of_readings.section_of("torchao:int4").count("/") == 0
    assert said.parameters_of(comparison().plan)["read"] == "float, int8, int4, int2"
    ends = said.comparison_metrics(comparison())
    assert ends["end_read_as_int4/lawa"] == pytest.approx(2.05)
    assert "end_read_as_int2/decayed" not in ends
    _, state = saved_view.experiment_tag(comparison().plan, "key", "name", 0, None)
    assert (
        state
        != saved_view.experiment_tag(
            comparisons.comparison(comparisons.CURVES).plan, "key", "name", 0, None
        )[1]
    )


def test_an_ablation_has_tables_and_a_verdict_a_reading() -> None:
    windows = [WindowConfig(k, 5) for k in (2, 3)]
    methods = methods_of(windows)
    made = comparisons.comparison({"constant": [[4.0, 3.0, 2.5, 2.0]] * 3})
    (training,) = made.trainings
    runs = tuple(
        read(dataclasses.replace(run, method=method.name), {"int4": added, "int2": math.inf})
        for method, added in zip(methods, (1.0, 0.3, 0.2), strict=True)
        for run in training.runs
    )
    plan = dataclasses.replace(
        made.plan, methods=methods, read_test=False, read=("float", "int4", "int2")
    )
    found = Comparison(plan, made.profile, (dataclasses.replace(training, runs=runs),))
    shown = report.report_of(found)
    assert len(shown.tables) == 6
    assert shown.tables[3].title.endswith("after 4 s of RST, read as int4")
    assert shown.tables[3].rows[2][1:] == ["2.3000 ± 0.0000", "2.2000 ± 0.0000"]
    assert shown.headline[1].startswith("Read as int4: Best at the end: k=3 every=5 with 2.2")
    assert (
        shown.headline[2]
        == "Read as int2: A training failed or is not finite, so no window is best."
    )
    columns = ablation.columns(found)
    assert columns["final_metric_as_int4"][0] == pytest.approx(2.3)
    assert {*columns["metric_at_half_as_int2"]} == {"not finite"}
    assert {*figures_of(found)} == {
        *("k-against-interval", "k-against-interval-int4", "k-against-interval-int2"),
    }
