"""The benchmarks' report: what is missed is marked, and what fails is not left out."""

import importlib.util
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm_python

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"

OF_A_GPU = "## On a GPU\n\nWhat another command has written."
FAILING = '"""One that fails."""\nraise OSError("no such disk")\n'
MISSING = '''"""One that misses.

    python benchmarks/memory.py

What it does.
"""

from rows import Limit, Row, finish, parser

options = parser(__doc__).parse_args()
limit = Limit(1.5, "the floor")
slow = Row.of("slow", "1 M", "s", [2.0, 2.0], {"peer": [4.0, 1.0]}, [1.0, 1.0], limit)
fast = Row.of("fast", "1 M", "s", [1.0, 3.0], limit=Limit(2.0))
finish([slow, fast], ["A note.", f"quick: {options.quick}"], options)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], str]:
    """The command with two benchmarks in the place of the real ones, and what it wrote."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("all.py", "rows.py"):
        shutil.copy(FOLDER / name, folder)
    (folder / "averaging.py").write_text(FAILING)
    (folder / "memory.py").write_text(MISSING)
    (folder / "RESULTS.md").write_text(f"# Results\n\n## Old\n\n{OF_A_GPU}\n")
    out = folder / "out.md"
    options = ("--quick", "--only", "averaging", "memory", "--out", str(out))
    done = subprocess.run(
        [warm_python.executable(), str(folder / "all.py"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    return done, out.read_text()


def test_a_failing_benchmark_has_a_section_and_the_command_fails(
    run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    done, written = run
    assert done.returncode == 1
    assert done.stderr.endswith("FAILED: averaging\n")
    section = written.split("## One that fails")[1].split("\n## ")[0]
    assert "**FAILED**, there is no result: exit status 1: OSError: no such disk" in section


def test_the_others_go_on_and_what_they_miss_is_marked(
    run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    _, written = run
    section = written.split("## One that misses")[1]
    slow = "| slow | 1 M | 2 | 2 s | 0 | 1.25 | 2 | ≤ 1.5 x the floor | MISSED |"
    assert slow in section.splitlines()
    assert "| fast | 1 M | 2 | 2 s | 1 | · | ≤ 2 s | met |" in section.splitlines()
    assert "What it does." in section
    assert "- A note." in section
    assert "- quick: True" in section
    assert "1 of 2 are met." in written
    assert "| MISSED | slow | 1 M | ≤ 1.5 x the floor | 2 |" in written.splitlines()
    assert "TRIED WITH --quick" in written


def test_the_section_on_a_gpu_is_kept(
    run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    _, written = run
    assert written.endswith(f"\n\n{OF_A_GPU}\n")
    assert "## Old" not in written
    assert (FOLDER / "RESULTS.md").read_text().count("\n## On a GPU\n") == 1


def test_results_are_of_a_whole_run_only() -> None:
    done = subprocess.run(
        [warm_python.executable(), str(FOLDER / "all.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--quick and --only need --out FILE" in done.stderr


def test_every_benchmark_is_run() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if "rows import" in path.read_text()}
    listed = (FOLDER / "all.py").read_text().split("BENCHMARKS = (")[1].split(")")[0]
    assert scripts - {"all"} == {name.strip(' ",') for name in listed.split("\n") if name.strip()}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("rows", FOLDER / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rows", module)
    spec.loader.exec_module(module)
    return module


def sampled(rows: Any, monkeypatch: pytest.MonkeyPatch, disturbed: set[int]) -> list[float]:
    """The numbers of the samples that make four rounds, where a neighbour is there during some."""
    taken = itertools.count()
    latest = -1

    def sample() -> float:
        nonlocal latest
        latest = next(taken)
        return float(latest)

    probe = lambda: 2e-4 if latest in disturbed else 1e-4  # noqa: E731
    monkeypatch.setattr(rows, "cpu_probe_seconds", probe)
    return rows.undisturbed_rounds({"a": sample}, 4)["a"]


def test_for_disturbed_rounds_others_are_run(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The probe before a round is the one after the round before.
    assert sampled(rows, monkeypatch, disturbed={1, 4}) == [0.0, 3.0, 6.0, 7.0]
    assert rows.ROUNDS == {"all": 4, "disturbed": 0}


def test_effort_has_an_end_and_what_was_disturbed_is_told(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampled(rows, monkeypatch, disturbed=set(range(2, 100))) == [0.0, 1.0, 10.0, 11.0]
    assert rows.ROUNDS == {"all": 4, "disturbed": 2}
