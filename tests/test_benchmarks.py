"""The benchmarks' report: what is missed is marked, and what fails is not left out."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"

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
    out = folder / "out.md"
    options = ("--quick", "--only", "averaging", "memory", "--out", str(out))
    done = subprocess.run(
        [sys.executable, str(folder / "all.py"), *options],
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


def test_results_are_of_a_whole_run_only() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "all.py"), "--quick"],
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
