"""`python -m baselines compare`, run for real and read back through MLflow's own client."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baselines.cli.app import app
from baselines.experiment.calibration import FEWEST_PROCESSES
from baselines.methods.names import DEFAULT, find
from tests.support.commands import command, made_up
from tests.support.stores import empty_store
from tests.support.user_files import EXAMPLE
from timing import Profile
from timing.cli import commandline

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
mlflow = pytest.importorskip("mlflow")

# A network of a few hundred weights, for the costs are measured here as a user has them measured.
QUICK = ("compare", "--workload", str(EXAMPLE), "--seeds", "2", "--budget", "0.3s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    done = command(folder, *QUICK)
    assert done.returncode == 0, done.stderr
    return done


def kept_in(done: subprocess.CompletedProcess[str]) -> str:
    """Where a comparison was kept, as the command prints it."""
    found = re.search(r"^Kept in (\S+): the same command goes on", done.stdout, re.MULTILINE)
    assert found
    return found.group(1)


def runs_of(folder: Path) -> tuple[mlflow.MlflowClient, list, list]:
    """The client of the folder's store, its comparisons, oldest first, and all their children."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lawa-opt")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return client, parents, [run for run in found if run not in parents]


def test_what_is_printed(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    out = first.stdout
    assert "Reference profile:" in out
    assert (folder / kept_in(first) / "reference.json").exists()
    assert "NVML" in out or "NVIDIA" in out
    for method in DEFAULT:
        assert find(method).title in out
    assert "RST by policy, means over seeds" in out
    measured = Profile.read(folder / kept_in(first) / "reference.json").processes
    said = f"{len(measured)} processes give a run's seconds to ±"
    assert said in " ".join(out.split())
    assert "RST to target" in out
    assert "LAWA of the constant rate" in out
    assert "2 paired seeds" in " ".join(out.split())
    *_, how, page, _, address = out.strip().splitlines()
    ui = r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs"
    assert re.search(
        rf" {ui}/[0-9a-f]{{32}}/artifacts/report\.html\?workflowType=machine_learning$", page
    )
    assert re.search(rf"^{ui}\?\S+&viewStateShareKey=[0-9a-f]+$", address)
    assert re.search(
        r"-m mlflow ui --backend-store-uri sqlite:\S+mlflow\.db --host 127\.0\.0\.1", how
    )


def test_one_parent_and_a_child_for_each_method_and_seed(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    client, (parent, *_), children = runs_of(folder)
    mine = [r for r in children if r.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert {(r.data.params["method"], int(r.data.params["seed"])) for r in mine} == {
        (method, seed) for method in DEFAULT for seed in (0, 1)
    }
    assert {r.info.status for r in [parent, *mine]} == {"FINISHED"}
    for child in mine:
        values = client.get_metric_history(child.info.run_id, "validation/metric")
        seconds = client.get_metric_history(child.info.run_id, "rst_seconds")
        assert [m.step for m in values] == [m.step for m in seconds]
        # How many there are depends on how fast the machine was while it was calibrated.
        assert len(values) > 2
        assert child.data.metrics["final/metric"] == values[-1].value
        budget = float(child.data.params["budget_seconds"])
        assert 0.9 * budget < seconds[-1].value <= budget
        account = json.loads(mlflow.artifacts.load_text(f"{child.info.artifact_uri}/account.json"))
        charged = sum(line["seconds"] for line in account["lines"] if line["charged"])
        assert charged == pytest.approx(seconds[-1].value)


def test_the_parent_has_table_verdict_plot_and_reference(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    client, (parent, *_), children = runs_of(folder)
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    plots = {"metric-over-rst.png", "final-metric.png", "time-to-target.png", "account.png"}
    assert names == {"reference-profile.json", "report.html", "report.md", "results.json", *plots}
    note = parent.data.tags["mlflow.note.content"]
    assert "| LAWA of the decayed rate |" in note
    assert "paired seeds" in note
    table = json.loads(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/results.json"))
    finals = {(method, seed): final for method, seed, final, *_ in table["data"]}
    for child in children:
        if child.data.tags["mlflow.parentRunId"] == parent.info.run_id:
            key = child.data.params["method"], int(child.data.params["seed"])
            assert finals[key] == child.data.metrics["final/metric"]
    reference = json.loads(
        mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/reference-profile.json")
    )
    assert reference == json.loads((folder / kept_in(first) / "reference.json").read_text())
    assert len(parent.data.params["data/sha256"]) == 64
    # Two each, forward and backward; the rows themselves need no gradient.
    begin, end = 10 * 64, 64
    assert reference["workload"]["flops_per_step"] == 32 * 2 * (2 * begin + 3 * end)
    assert len(reference["processes"]) >= FEWEST_PROCESSES


def test_the_same_reference_gives_the_same_digits(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    again = command(folder, *QUICK, "--reference", f"{kept_in(first)}/reference.json")
    assert again.returncode == 0, again.stderr
    client, parents, children = runs_of(folder)

    def told(parent) -> dict[tuple[str, str], list[tuple[int, float]]]:
        return {
            (run.data.params["method"], f"{run.data.params['seed']} {metric}"): [
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)
            ]
            for run in children
            if run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            for metric in ("validation/metric", "train/loss", "rst_seconds")
        }

    assert len(parents) == 2
    assert told(parents[0]) == told(parents[1])
    # What is wrong with a profile is said to whoever is given it, too.
    warnings = re.findall("^WARNING: of the reference profile, .*$", first.stdout, re.MULTILINE)
    assert warnings
    assert all(warning in again.stdout for warning in warnings)


def test_the_same_command_does_nothing_again(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    before = len(runs_of(folder)[1])
    again = command(folder, *QUICK)
    assert again.returncode == 0, again.stderr
    assert "calibrating" not in again.stdout
    table = "RST each"
    # How often it is told how far it is hangs on the time that it takes.
    said, told = (
        re.sub(r"^.* left\n", "", each.stdout[each.stdout.rindex(table) :], flags=re.MULTILINE)
        for each in (again, first)
    )
    assert "nothing new, it has the 12 runs with" in said
    assert said.replace("nothing new, it has the 12 runs", "12 runs") == told
    assert len(runs_of(folder)[1]) == before


def test_a_text_of_the_users_own(folder: Path) -> None:
    text = folder / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 700)
    reference = made_up(folder, "text", str(text), k=5)
    done = command(
        folder,
        *("compare", "--workload", "text", "--data", str(text), "--reference", reference),
        *("--methods", "lawa", "--seeds", "1", "--budget", "0.2s", "--no-publish"),
    )
    assert done.returncode == 0, done.stderr
    assert "text: 0.2 s of RST each" in done.stdout


def test_the_other_options(folder: Path) -> None:
    options = (
        "--budget 0.2s,0.4s --seeds 1 --methods constant,lawa,annealed-50 --set lawa.k=3 "
        "--set lawa.every=5 --lr 0.003 --policy mlperf"
    )
    (folder / "other").mkdir()
    store = empty_store(folder / "other")
    done = command(
        folder,
        *(*QUICK[:3], *options.split()),
        *("--reference", made_up(folder, str(EXAMPLE), None, k=3)),
        MLFLOW_TRACKING_URI=store,
        MLFLOW_EXPERIMENT_NAME="elsewhere",
    )
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("elsewhere")
    found = client.search_runs([experiment.experiment_id])
    by_budget = [run for run in found if run.data.params.get("method") == "lawa"]
    assert {run.data.params["budget_seconds"] for run in by_budget} == {"0.2", "0.4"}
    assert "by budget" in done.stdout
    lawa = by_budget[0]
    assert lawa.data.params["lawa.every"] == "5"
    assert lawa.data.params["lawa.k"] == "3"
    assert lawa.data.params["learning_rate"] == "0.003"
    account = json.loads(mlflow.artifacts.load_text(f"{lawa.info.artifact_uri}/account.json"))
    counts = {line["operation"]: line["times"] for line in account["lines"]}
    assert counts["collect"] == counts["train_step"] // 5
    assert all(line["charged"] for line in account["lines"])
    assert lawa.data.params["policy"] == "mlperf"
    assert len(found) == 2 * 4
    spent = {
        run.data.params["budget_seconds"]: run.data.metrics["work/rst_seconds"]
        for run in found
        if run.data.params.get("method") == "annealed-50"
    }
    assert 0 < spent["0.2"] <= 0.1 < spent["0.4"] <= 0.2


WRONG = {
    "--workload cifar": "--workload: 'cifar' is none of pydocs, digits, text",
    "--workload nowhere.py": "--workload: nowhere.py: No such file or directory",
    "--workload text": "--workload: workload text needs --data PATH",
    "--workload digits --data x.txt": "--workload: workload digits takes no --data PATH",
    "--workload text --data missing.txt": "--workload: missing.txt: No such file or directory",
    "--budget soon": "--budget: 'soon' is no length of time such as 90s",
    "--budget 0": "--budget: '0' is no length of time",
    "--seeds 0": "--seeds must be at least 1: 0",
    "--seeds many": "valid integer",
    "--methods lawa,adam": "--methods: 'adam' is none of constant, decayed",
    "--methods lawa,lawa": "--methods names a method twice",
    "--set lawa.k=0": "--set: lawa.k: k must be from 1 to 10000: 0",
    "--set lawa.every=0": "--set: lawa.every: every must be auto, or from 1 to 1000000000 steps: 0",
    "--set lawa.every=manual": "--set: lawa.every cannot be 'manual': ",
    "--set lawa.k": "--set must be NAME=VALUE, such as lawa.k=10: 'lawa.k'",
    "--methods ema --set lawa.k=3": "--set: 'lawa.k' is no setting of the methods compared; they",
    "--lr -1": "--lr must be a positive number: -1",
    "--lr nan": "--lr must be a positive number: nan",
    "--policy free": "--policy: 'free' is none of algoperf, ntng, mlperf",
    "--budget 1s,soon": "--budget: 'soon' is no length of time",
    "--jobs 0": "--jobs must be at least 1: 0",
    "--trials -1": "--trials must be at least 0: -1",
    "--cluster-option a=1": "--cluster-option is for --cluster",
    "--cluster local --cluster-option a": "--cluster-option must be NAME=VALUE: 'a'",
    "--cluster pigeons": "--cluster: submitit refuses cluster 'pigeons'",
    "--threads 0": "--threads must be at least 1: 0",
    "--reference nowhere.json": "--reference: nowhere.json: No such file or directory",
    "--nonsense": "No such option",
}


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_value_is_one_clear_line_before_any_training(
    options: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["baselines", "compare", *options.split()])
    with pytest.raises(SystemExit) as stop:
        commandline.run(app)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert WRONG[options] in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reference_of_another_workload_is_refused_before_training(
    folder: Path,
    first: subprocess.CompletedProcess[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    reference = str(folder / kept_in(first) / "reference.json")
    monkeypatch.chdir(tmp_path)
    for options, message in (
        ("--set lawa.k=7", "measured with k=5 and this run has k=7"),
        ("--budget 0.000001s", "does not pay for one step"),
    ):
        line = ["baselines", *QUICK[:3], *options.split(), "--reference", reference]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            commandline.run(app)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_is_marked_and_the_others_go_on(folder: Path, first) -> None:
    done = command(
        folder,
        *(*QUICK, "--reference", f"{kept_in(first)}/reference.json", "--lr", "1e30"),
        *("--methods", "constant,lawa"),
        MLFLOW_EXPERIMENT_NAME="diverges",
    )
    assert done.returncode == 1
    assert done.stdout.count(": the training loss or the metric is no finite number") == 4
    assert done.stderr.count("\n") == 1
    assert "error: every run failed under 0.3 s: constant, seed 0: the training" in done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("diverges").experiment_id])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.status for run in found} == {"FAILED"}
    assert all("lower the rate" in run.data.tags["failure"] for run in children)
    assert len(children) == 4


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
def test_help(arguments: list[str], tmp_path: Path) -> None:
    done = command(tmp_path, *arguments)
    assert done.returncode == 0
    assert "budget" in done.stdout
