"""The prepared run on a GPU, tried on the CPU: its parts, its page, and what comes home of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import mlflow
import pytest

from baselines.tracking.publish import COMPARISON_TAG
from tests.support import warm_python
from tests.support.stores import empty_store

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
SCRIPT = FOLDER / "on_gpu.py"
CONTRIBUTING = (FOLDER.parent / "CONTRIBUTING.md").read_text()
# What the machine that it is for brings back: so many files, and none of them large.
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
MOST_SECONDS = 9 * 60

# It takes a minute and a half on a quiet machine, and whichever test is the first waits for it.
pytestmark = pytest.mark.timeout(900)

# As there: a machine without MLflow, and none of this environment's settings for it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}


def run(
    *arguments: Any, python: str = sys.executable, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [python, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def run_warm(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same where no part of a run is started, which must find its own libraries."""
    return run(*arguments, python=warm_python.executable(), cwd=cwd)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was tried."""
    out = tmp_path_factory.mktemp("on_gpu") / "out"
    done = run(SCRIPT, "--out", out, "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def constants() -> dict[str, Any]:
    """What stands in the script, which is read and not run."""
    source = SCRIPT.read_text()
    found: dict[str, Any] = {}
    exec(source[source.index("TOTAL =") : source.index("# Most of the end")], found)
    return found


def test_the_limits_add_up_to_nine_minutes_at_most() -> None:
    script = constants()
    limits = script["LOOK"] + sum(script["PARTS"].values()) + script["WRITE_PAGE"]
    assert limits <= script["TOTAL"] <= MOST_SECONDS
    files = {path.stem for path in (FOLDER / "on_gpu_parts").glob("*.py")}
    assert set(script["PARTS"]) <= files


def test_the_wheels_to_bring_are_all_that_pydantic_needs() -> None:
    [command] = re.findall(r"^    (python -m pip download .*)", CONTRIBUTING, re.MULTILINE)
    names = command.partition("--constraint constraints.txt ")[2].split()
    constraints = (FOLDER.parent / "constraints.txt").read_text().split()
    assert set(names) <= {line.partition("==")[0] for line in constraints}
    needs = [need for need in requires("pydantic") or [] if ";" not in need]
    assert needs
    for need in ("pydantic", *needs):
        assert re.split(r"[^\w-]", need)[0].replace("-", "_") in command.replace("-", "_").split()


def test_every_part_ends_well_and_leaves_few_files(smoke: Path) -> None:
    for name in constants()["PARTS"]:
        found = json.loads((smoke / f"{name}.json").read_text())
        assert found["failure"] == ""
        assert found["smoke"]
        assert found["rows"]
    files = list(smoke.iterdir())
    assert len(files) <= MOST_FILES
    assert all(re.fullmatch(r"[\w.-]+", file.name) for file in files)
    assert all(file.stat().st_size < MOST_BYTES for file in files)


def test_the_page_has_every_part_and_says_that_it_was_tried_only(smoke: Path) -> None:
    page = (smoke / "gpu.md").read_text()
    assert page.startswith("# On a GPU\n")
    assert "TRIED WITH --smoke" in page
    for name in constants()["PARTS"]:
        docstring = (FOLDER / "on_gpu_parts" / f"{name}.py").read_text().split('"""')[1]
        title = docstring.partition("\n")[0].rstrip(".")
        assert f"\n## {title}\n" in page
    for work in (
        "collecting",
        "reading the mean",
        "averaged() and back",
        "step of fused AdamW",
        "step with a collect into host memory",
        "one train_step",
        "RST over measured seconds, less one",
        "GPU active, by NVML",
        "energy a step",
        "energy of one train_step",
        "watts of operations against the loop",
        "RSE of all that ran but evaluations",
        "values of RST that differ from those of the training alone",
    ):
        assert f"| {work} |" in page
    assert "NVIDIA Fake A" in page
    assert re.search(r"^- Commit: ([0-9a-f]{40}|not known)", page, re.MULTILINE)
    assert re.search(r"^\| one train_step, .*ema_update.* \|", page, re.MULTILINE)
    assert "Operations here and by the profile" in page
    assert "LAWA of the constant rate" in page


def test_what_was_only_tried_is_not_published_among_the_results(
    smoke: Path, tmp_path: Path
) -> None:
    results = FOLDER / "RESULTS.md"
    before = results.read_text()
    refused = run_warm(SCRIPT, "--publish", smoke)
    assert refused.returncode == 1
    assert "its figures say nothing: give --into FILE" in refused.stderr
    assert results.read_text() == before
    copy = tmp_path / "results.md"
    copy.write_text(before)
    for _ in range(2):
        assert run_warm(SCRIPT, "--publish", smoke, "--into", copy).returncode == 0
        published = copy.read_text()
        assert published.startswith(before.partition("## On a GPU")[0])
        assert published.count("\n## On a GPU\n") == 1
        assert "Not run yet" not in published
        assert "\n### A comparison of the default methods" in published


def test_a_part_is_run_again_in_the_folder_of_a_run(smoke: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(smoke, tmp_path / "out"))
    before = {name: (out / f"{name}.json").read_bytes() for name in constants()["PARTS"]}
    done = run(SCRIPT, "--out", out, "--smoke", "--only", "gpu_tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpu_tests: ended well" in done.stdout
    after = {name: (out / f"{name}.json").read_bytes() for name in before}
    assert [name for name in before if after[name] != before[name]] == ["gpu_tests"]
    assert "| comparison |" in (out / "gpu.md").read_text()
    assert (out / "comparison.tar.gz").read_bytes() == (smoke / "comparison.tar.gz").read_bytes()
    refused = run_warm(SCRIPT, "--out", tmp_path / "none", "--smoke", "--only", "gpu_tests")
    assert refused.returncode == 1
    assert "holds no run" in refused.stderr


def test_the_comparison_is_sent_to_mlflow_from_where_there_is_one(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(smoke / "comparison.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert not list((tmp_path / "comparison").rglob("*.pt"))
    page = (smoke / "gpu.md").read_text()
    [folder] = re.findall(r"`python -m baselines publish (\S+)`", page)
    [scored] = re.findall(r"`python -m (baselines score \S+)`", page)
    empty_store(tmp_path)
    sent = run_warm("-m", "baselines", "publish", folder, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert re.match(r"Published to the experiment 'lawa-opt' of sqlite", sent.stdout), sent.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lawa-opt")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {run.info.run_name for run in found}
    assert {f"{method}, seed 0" for method in ("constant", "lawa", "lawa-decayed")} <= names
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({run.data.tags[COMPARISON_TAG] for run in found}) == 1
    assert run_warm("-m", *scored.split(), cwd=tmp_path).returncode == 0


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "of_another_run.json").write_text("{}")
    done = run_warm(SCRIPT, "--out", tmp_path, "--smoke")
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    refused = run_warm(SCRIPT, "--publish", tmp_path, "--into", tmp_path / "r")
    assert "holds no run" in refused.stderr


def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "CUDA sees no GPU here" in done.stdout
    assert "nothing was run" in done.stderr
    assert not list(out.iterdir())


def test_a_part_that_is_killed_keeps_what_it_had_and_stops_no_other(tmp_path: Path) -> None:
    """Of a copy with other parts: one that hangs with a child, one that fails, one that is well."""
    parts = tmp_path / "on_gpu_parts"
    parts.mkdir()
    script = SCRIPT.read_text()
    source = script.partition("PARTS = {")[2].partition("}")[0]
    # Nor is there time left over from looking around.
    script = script.replace("LOOK, WRITE_PAGE = 45", "LOOK, WRITE_PAGE = 1")
    listed = '\n    "hangs": 1,\n    "fails": 30,\n    "ends": 30,\n'
    (tmp_path / "on_gpu.py").write_text(
        script.replace(source, listed).replace(
            "ROOT = HERE.parent", f"ROOT = Path({str(FOLDER.parent)!r})"
        )
    )
    written = (
        "import sys, json, pathlib, subprocess, time\n"
        "file = pathlib.Path(sys.argv[sys.argv.index('--json') + 1])\n"
        "file.write_text(json.dumps({'rows': [], 'notes': ['had this'], 'data': {}}))\n"
    )
    marker = f"lives-on-{os.getpid()}"
    hang = f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {marker!r}])\n"
    (parts / "__init__.py").write_text("")
    (parts / "look.py").write_text("print('looked')")
    (parts / "hangs.py").write_text(written + hang + "time.sleep(60)")
    (parts / "fails.py").write_text(written + "raise OSError('no such disk')")
    (parts / "ends.py").write_text(written)
    (parts / "page.py").write_text("raise SystemExit('no page')")
    out = tmp_path / "out"
    done = run(tmp_path / "on_gpu.py", "--out", out, "--smoke")
    assert done.returncode == 1
    assert "did not end well: hangs, fails, page" in done.stderr
    failures = {
        file.stem: json.loads(file.read_text())["failure"] for file in sorted(out.glob("*.json"))
    }
    assert re.fullmatch(r"killed at its limit of \d s", failures.pop("hangs"))
    assert failures == {
        "fails": "exit status 1; the last it said: OSError: no such disk",
        "ends": "",
    }
    for file in out.glob("*.json"):
        assert json.loads(file.read_text())["notes"] == ["had this"]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(marker.encode() in command for command in commands)
