"""The benchmarks' report: what is missed is marked, and what fails is not left out."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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


def test_the_section_on_a_gpu_is_kept(
    run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    _, written = run
    assert written.endswith(f"\n\n{OF_A_GPU}\n")
    assert "## Old" not in written
    assert (FOLDER / "RESULTS.md").read_text().count("\n## On a GPU\n") == 1


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


class Host:
    """A clock, and a neighbour on the same core until `leaves`, and from `returns` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, leaves: float, returns: float) -> None:
        self.seconds = 0.0
        self.leaves, self.returns = leaves, returns
        spec = importlib.util.spec_from_file_location("rows", FOLDER / "rows.py")
        assert spec is not None
        assert spec.loader is not None
        rows: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "rows", rows)
        spec.loader.exec_module(rows)
        monkeypatch.setattr(rows, "cpu_probe_seconds", lambda: 1e-4)
        self.processor = rows.FreeProcessor(patience_seconds=10.0)
        monkeypatch.setattr(rows, "cpu_probe_seconds", lambda: 1e-4 if self.free else 2e-4)
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(time, "sleep", self.work)

    @property
    def free(self) -> bool:
        return self.leaves <= self.seconds < self.returns

    def work(self, seconds: float) -> None:
        self.seconds += seconds

    def sample(self) -> float:
        """The second at which it was begun; it takes one."""
        begun = self.seconds
        self.work(1.0)
        return begun


def test_a_sample_waits_until_the_processor_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, leaves=5.0, returns=100.0)
    assert host.processor.measure(host.sample) == pytest.approx(5.0, abs=0.02)
    assert host.processor.notes()[0].startswith("0% of the samples")


def test_a_sample_that_was_slowed_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, leaves=0.0, returns=0.5)
    begun: list[float] = []

    def sample() -> float:
        begun.append(host.sample())
        host.leaves, host.returns = 3.0, 100.0
        return begun[-1]

    assert host.processor.measure(sample) == begun[1] == pytest.approx(3.0, abs=0.02)
    assert host.processor.notes()[0].startswith("0% of the samples")


def test_patience_has_an_end_and_what_was_slowed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, leaves=1000.0, returns=2000.0)
    # Ten seconds of waiting, and three tries of a second.
    assert host.processor.measure(host.sample) == pytest.approx(12.0, abs=0.02)
    assert host.processor.notes()[0].startswith("100% of the samples")


def test_a_sample_that_began_slowed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, leaves=0.5, returns=100.0)
    host.processor.patience_seconds = 0.0
    assert host.processor.measure(host.sample) == 1.0
    assert host.processor.notes()[0].startswith("0% of the samples")
