"""An ablation reads from one training what a training for each window would have given."""

import dataclasses
import itertools
import os
import sys

import pytest

from baselines.analysis.ablation import table
from baselines.experiment.ablation import WindowConfig, configs_of, methods_of
from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.plan import Plan, check
from baselines.methods.names import find
from baselines.training.loop import train
from tests.support.profiles import profile_of
from tests.support.stores import empty_store
from tests.support.trainings import COSTS, WORKLOAD
from timing import Budget, ProfileError
from timing.cli import commandline

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

CELLS = [WindowConfig(k, every) for every in ("auto", 7) for k in (1, 2, 4)]
PLAN = Plan(WORKLOAD, methods_of(CELLS), (0, 1), Budget(0.4), 0.05, 4, read_test=False)
PROFILE = profile_of([COSTS], PLAN.signature)


@pytest.fixture(scope="module")
def ablation() -> Comparison:
    return compare(PLAN, PROFILE)


@pytest.mark.slow
def test_each_cell_is_what_a_training_of_its_own_gives(ablation: Comparison) -> None:
    # The seeds take turns.
    for cell, seed in zip(CELLS, itertools.cycle(PLAN.seeds), strict=False):
        naive = find(f"lawa(k={cell.k},every={cell.every})")
        options = (WORKLOAD, [naive], seed, PLAN.budget, COSTS, PLAN.learning_rate, 4)
        (alone,) = train(*options, read_test=False).runs
        assert ablation.of(cell.name)[seed] == alone


@pytest.mark.slow
def test_the_live_weights_are_those_of_the_constant_rate(ablation: Comparison) -> None:
    for seed in PLAN.seeds:
        options = (WORKLOAD, [find("constant")], seed, PLAN.budget, COSTS, PLAN.learning_rate, 4)
        (alone,) = train(*options, read_test=False).runs
        assert ablation.of("constant")[seed] == alone


@pytest.mark.slow
def test_one_training_a_seed_serves_all(ablation: Comparison) -> None:
    assert [len(result.runs) for result in ablation.trainings] == [7, 7]


@pytest.mark.slow
def test_the_table_has_each_cell_in_its_place(ablation: Comparison) -> None:
    head, live, auto, seven = table(ablation)
    assert head == ["every", "k=1", "k=2", "k=4"]
    assert live[0] == "live"
    assert live[2:] == ["", ""]
    for row, every in ((auto, "auto"), (seven, 7)):
        assert row[0] == str(every)
        for place, k in enumerate((1, 2, 4), start=1):
            finals = [run.final for run in ablation.of(WindowConfig(k, every).name)]
            assert row[place].startswith(f"{sum(finals) / 2:.4f} ± ")
    halves = table(ablation, 0.5)
    values = [run.value_at(0.2) for run in ablation.of("lawa(k=4,every=7)")]
    assert halves[3][3].startswith(f"{sum(values) / 2:.4f} ± ")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="wants windows, each once"):
        methods_of([])
    with pytest.raises(ValueError, match="wants windows, each once"):
        methods_of([WindowConfig(4, 7), WindowConfig(4, 7)])
    other = profile_of([COSTS], {**PLAN.signature, "k": 5})
    with pytest.raises(ProfileError, match="measured with k=5 and this run has k=4"):
        check(PLAN, other)


def test_an_ablation_is_known_by_its_methods() -> None:
    assert configs_of(PLAN) == CELLS
    for other in (
        dataclasses.replace(PLAN, read_test=True),
        dataclasses.replace(PLAN, methods=PLAN.methods[1:]),
        dataclasses.replace(PLAN, methods=PLAN.methods[:1]),
        dataclasses.replace(PLAN, methods=(*PLAN.methods, find("ema"))),
        dataclasses.replace(PLAN, methods=(*PLAN.methods, find("decayed+lawa"))),
    ):
        assert configs_of(other) == []


def in_mlflow(uri: str) -> None:
    """The ablation of the command: a note with tables and heat map, and a run a window and seed."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("lawa-opt")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.run_name == "ablation digits 0.4s x 2 seeds"
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "results.json", "k-against-interval.png"} <= names
    note = parent.data.tags["mlflow.note.content"]
    for text in (
        "after 0.2 s of RST",
        "after 0.4 s of RST",
        "| every | k=1 | k=4 |",
        "![k-against",
    ):
        assert text in note
    windows = {run.info.run_name: run for run in found if run is not parent}
    assert set(windows) == {
        f"{name}, seed {seed}"
        for name in (
            "constant",
            "lawa(k=1)",
            "lawa(k=4)",
            "lawa(k=1,every=7)",
            "lawa(k=4,every=7)",
        )
        for seed in (0, 1)
    }
    own = windows["lawa(k=1,every=7), seed 1"]
    assert (own.data.params["lawa.k"], own.data.params["lawa.every"]) == ("1", "7")
    assert own.data.metrics["final/metric"] == own.data.metrics["validation/averaged"]
    assert own.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    from baselines.cli.app import app

    mlflow = pytest.importorskip("mlflow")
    PROFILE.write(tmp_path / "reference.json")
    empty_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*options: str) -> tuple[int, str, str]:
        arguments = ["baselines", "ablate", "--workload", "digits", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            commandline.run(app)
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    options = "--k 1,4 --every auto,7 --seeds 2 --budget 0.4s --reference reference.json"
    code, out, err = run(*options.split())
    assert (code, err) == (0, "")
    assert "digits: nats per image after 0.2 s of RST" in out
    assert "digits: nats per image after 0.4 s of RST" in out
    assert "Best at the end: k=" in out
    assert "viewStateShareKey=" in out.strip().splitlines()[-1]
    in_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "diverges")
    code, out, err = run(*options.split(), "--lr", "1e30")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: every run failed under 0.4 s: constant, seed 0: ")
    assert "A training failed, so no window is best" in out
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("diverges").experiment_id])
    assert {run.info.status for run in found} == {"FAILED"}
    for wrong, message in (
        ("--k 0", "--k must be a whole number from 1: '0'"),
        ("--k 2,2", "names a value twice"),
        ("--every soon", "--every must be a number of steps from 1, or auto: 'soon'"),
        ("--budget 1s,1s", "names a length of time twice"),
        ("--k 4 --budget 0.00001s --reference reference.json", "does not pay for one step"),
        ("--k 1,5 --reference reference.json", "measured with k=4 and this run has k=5"),
    ):
        code, out, err = run(*wrong.split())
        assert (code, out) == (2, "")
        assert message in err
