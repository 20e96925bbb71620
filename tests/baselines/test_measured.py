"""How a report shows what trainings took, beside their RST."""

from __future__ import annotations

import dataclasses
import statistics
import time

import pytest

from baselines.analysis import charges, measured
from baselines.analysis.html_report import page
from baselines.analysis.report import markdown, report_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept
from baselines.tracking import said
from baselines.training.measurement import Measurement, Timed
from tests.support.comparisons import CURVES, comparison, kept
from tests.support.profiles import process, profile_of, with_watts
from tests.support.trainings import COSTS, WORKLOAD, follow
from timing import GpuUse, Phase

PHASE = Phase(90, 0.11, 0.01, 9.9, 9.9, "host", 10, 1.2)
PHASES = {"train_step": Timed({"train_step": 1}, PHASE)}


def use(joules: float | None) -> GpuUse:
    empty = dict.fromkeys(GpuUse.model_fields)
    told = {"energy_joules": joules, "energy_source": "counter" if joules else None}
    return GpuUse(
        **{**empty, "uuid": "GPU-a", "name": "A", "window_seconds": 9, "polls": 3}
        | {**told, "unavailable": () if joules else ("no energy counter: Not Supported",)}
    )


def measurement(**changed: object) -> Measurement:
    made = Measurement({"train_step": 40}, 4.0, 1, 1, PHASES, (), None, ())
    return dataclasses.replace(made, **changed)


def with_measurements(*found: tuple[float, Measurement | None]) -> Comparison:
    """A comparison whose trainings took these seconds; the reference has 0.1 s a step, ±0.5%."""
    made = comparison(CURVES)
    (whole,) = made.trainings
    rows = [process({"train_step": 0.1 + i / 4000}, additivity_error=-0.02) for i in range(-1, 2)]
    seeds = [
        dataclasses.replace(
            whole,
            runs=tuple(run for run in whole.runs if run.seed == seed),
            measured_seconds=seconds,
            measurement=each,
        )
        for seed, (seconds, each) in enumerate(found)
    ]
    return Comparison(made.plan, profile_of(rows, made.plan.signature), tuple(seeds))


def test_seconds_stand_beside_rst_by_training_and_by_operation() -> None:
    made = with_measurements(*((seconds, measurement()) for seconds in (4.0, 4.04, 4.08)))
    head, row = measured.trainings(made)
    assert head == [
        "training of",
        "RST, s",
        "measured, s",
        "measured / RST",
        "CPU, s",
        "other cores",
    ]
    assert row[1:4] == ["4 (4 to 4)", "4.04 (4 to 4.08)", "1.01 (1 to 1.02)"]
    _, of_step = measured.operations(made)
    assert of_step == ["train_step", "270", "110 ms", "100 ms", "1.1"]
    (said_of,) = measured.sentences(made)
    assert said_of == "Measured seconds were 1.01 (1 to 1.02) times RST in 3 trainings."


def test_more_than_the_profile_is_known_to_is_warned_of() -> None:
    # Three processes half a percent apart: 4.303 * 0.25 / sqrt(3) percent, and 2% of additivity.
    half = 0.0062
    for over, is_off in ((1 - half - 1e-3, True), (1 - half + 1e-3, False)):
        made = with_measurements(*[(4.0 * over, measurement())] * 3)
        assert len(measured.sentences(made)) == 1 + is_off
    for over, is_off in (((1 + half) / 0.98 + 1e-3, True), ((1 + half) / 0.98 - 1e-3, False)):
        made = with_measurements(*[(4.0 * over, measurement())] * 3)
        assert len(measured.sentences(made)) == 1 + is_off
    made = with_measurements((4.0, measurement()), (6.0, measurement()), (4.0, measurement()))
    _, warning = measured.sentences(made)
    assert warning.startswith("WARNING: in 1 of 3 trainings that is outside the 0.994 to 1.03 to")
    # Ten first passes took 1.2 s, and ten of the median 1.1 s.
    assert " and 1.7% of the time went into first steps: seconds here are not" in warning
    assert report_of(made).sentences[-1] == warning
    assert warning in markdown(made)


def test_columns_are_there_for_what_is_told_and_a_missing_one_is_no_zero() -> None:
    told = measurement(gpus=(use(250.0),), host_joules=99.0)
    refused = measurement(gpus=(use(None),), unavailable=("A (GPU-a): no energy counter",))
    made = with_measurements((4.0, told), (4.0, refused), (4.0, told))
    head, row = measured.trainings(made)
    cells = dict(zip(head, row, strict=True))
    assert cells["GPU, J"] == "250 (250 to 250), 1 not measured"
    assert cells["processors, J"] == "99 (99 to 99), 1 not measured"
    assert "GPU active, s" not in cells
    assert measured.not_measured(made) == ["Not measured: A (GPU-a): no energy counter."]
    assert measured.not_measured(made)[0] in report_of(made).conditions
    # Of several processes the joules of the first are lost, and a part of them is not the whole.
    assert measurement(gpus=(use(250.0),), processes=2).gpu_joules is None
    assert measurement(gpus=(use(250.0), use(None))).gpu_joules is None


def test_seconds_of_ranks_add_up_as_their_steps_do() -> None:
    made = with_measurements(*[(2.0, measurement(ranks=2))] * 3)
    assert [each.over_rst for each in measured.taken(made)] == [1.0] * 3


def test_a_training_that_went_on_is_said() -> None:
    made = with_measurements((4.0, measurement()), (4.0, measurement(processes=2)))
    assert any("1 of 2 trainings went on in another" in line for line in measured.sentences(made))


def test_nothing_is_said_of_results_from_before_it_was_measured() -> None:
    made = with_measurements(*[(4.0, None)] * 3)
    assert measured.trainings(made) == measured.operations(made) == []
    assert measured.sentences(made) == measured.not_measured(made) == []
    assert "Measured here" not in markdown(made)


def test_a_folder_with_operations_that_its_profile_lacks_says_nothing_of_them() -> None:
    strange = {"strange": Timed({"strange": 1}, PHASE)}
    for odd in (measurement(operations={"strange": 3}), measurement(phases=strange)):
        none = measurement(operations={"train_step": 0})
        made = with_measurements((4.0, odd), (4.0, measurement(operations={})), (4.0, none))
        assert measured.trainings(made) == measured.operations(made) == []


@pytest.mark.slow
def test_it_is_in_the_html_page_and_in_mlflow(tmp_path) -> None:
    told = measurement(gpus=(use(250.0),))
    made = with_measurements(*[(4.04, told)] * 3)
    root = kept(comparison(CURVES), tmp_path / "one")
    shown = page([(Kept.read(root / "4s"), made)])
    assert "Measured here, medians over seeds" in shown
    assert "Measured seconds were 1.01 (1.01 to 1.01) times RST" in shown
    result = made.trainings[0]
    metrics = said.end_metrics(result.runs[0], result, {})
    assert metrics["measured/over_rst"] == pytest.approx(1.01)
    assert metrics["measured/gpu_joules"] == 250.0
    assert metrics["measured/train_step_seconds"] == 0.11
    assert "measured/processors_joules" not in metrics
    bare = dataclasses.replace(result, measurement=None)
    assert not any(n.startswith("measured/") for n in said.end_metrics(bare.runs[0], bare, {}))


def with_joules(**watts: float) -> Comparison:
    """The same of a reference that has joules."""
    made = with_measurements(*[(4.0, measurement(operations={"train_step": 40, "collect": 4}))] * 3)
    rows = [with_watts(process({"train_step": 0.1, "collect": 0.01, "evaluate": 0.5}), **watts)] * 3
    return dataclasses.replace(made, profile=profile_of(rows, made.plan.signature))


@pytest.mark.slow
def test_rse_is_in_the_html_page(tmp_path) -> None:
    made = with_joules(train_step=500.0, collect=100.0, evaluate=80.0)
    root = kept(comparison(CURVES), tmp_path / "one")
    assert "<th>RSE, J</th>" in page([(Kept.read(root / "4s"), made)])


def test_rse_stands_beside_rst_where_the_reference_has_joules() -> None:
    made = with_joules(train_step=500.0, collect=100.0, evaluate=80.0)
    head, row = measured.trainings(made)
    assert head[1:4] == ["RST, s", "RSE, J", "measured, s"]
    # Forty steps of 50 J, four collects of 1 J.
    assert row[2] == "2e+03 (2e+03 to 2e+03)"
    head, *rows = charges.totals(made)
    assert head[-1] == "RSE, J"
    for line, method in zip(rows, made.plan.names, strict=True):
        counts = [run.counts for run in made.of(method)]
        naive = [
            sum({"train_step": 50.0}.get(n, 0) * times for n, times in c.items()) for c in counts
        ]
        assert line[-1] == f"{statistics.fmean(naive):.4g}"
    shown = markdown(made)
    assert "RST by policy and RSE, means over seeds" in shown
    assert "RSE is reference system energy, in joules of NVIDIA A: known to ±2.0%." in shown
    result = made.trainings[0]
    joules = made.profile.joules
    metrics = said.end_metrics(result.runs[0], result, joules)
    assert metrics["work/rse_joules"] == pytest.approx(50 * result.runs[0].counts["train_step"])
    assert said.reference_metrics(made.profile)["reference/collect_joules"] == pytest.approx(1.0)


def test_without_joules_of_what_ran_there_is_no_column_and_no_word_of_it() -> None:
    bare = with_measurements(*[(4.0, measurement())] * 3)
    for made in (bare, with_joules(collect=100.0)):
        assert "RSE, J" not in measured.trainings(made)[0]
        assert "RSE, J" not in charges.totals(made)[0]
        shown = markdown(made)
        assert "and RSE" not in shown
        assert "RSE is" not in shown
        result = made.trainings[0]
        joules = made.profile.joules
        assert "work/rse_joules" not in said.end_metrics(result.runs[0], result, joules)


@pytest.mark.slow
def test_trainings_with_the_same_counts_have_the_same_rse_however_long_they_took() -> None:
    def slow(model, batch):
        time.sleep(0.002)
        return WORKLOAD.loss(model, batch)

    joules = {name: 100 * seconds for name, seconds in COSTS.items()}
    quick = follow("lawa", budget=0.2)
    late = follow("lawa", budget=0.2, workload=dataclasses.replace(WORKLOAD, loss=slow))
    (one,), (other,) = quick.runs, late.runs
    # A sleep never ends early.
    assert late.measured_seconds > 0.002 * other.steps
    assert one.counts == other.counts
    energies = [said.end_metrics(r.runs[0], r, joules)["work/rse_joules"] for r in (quick, late)]
    assert energies[0] == energies[1] == pytest.approx(100 * one.totals["algoperf"])
