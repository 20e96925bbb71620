"""The tests that need a GPU: NVML against CUDA, events against clocks, LAWA in what trainings use.

Those marked `gpu` in `tests`, by pytest; a test added there is run here too. What fails is named,
with the last line of why; all that was printed of it is kept beside the table.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
from rows import Limit, Row

from on_gpu_parts.part import Part

ROOT = Path(__file__).resolve().parents[2]
KEPT_CHARACTERS = 4000


class Recorder:
    """A plugin of pytest that writes down what became of each test when it is known."""

    def __init__(self, part):
        self.part = part
        self.outcomes = {}

    def pytest_collection_modifyitems(self, items):
        # Last, so that a part that is killed has all others; of them, what must be compiled.
        def when(item):
            return item.get_closest_marker("slow") is not None, "compiled" in item.name

        items.sort(key=when)

    def pytest_collectreport(self, report):
        if report.failed:
            self.keep(report, 0.0)

    def pytest_runtest_logstart(self, nodeid):
        self.part.add(running=nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        self.keep(report, round(report.duration, 2))

    def keep(self, report, seconds):
        kept = {"outcome": report.outcome, "seconds": seconds}
        if report.skipped:
            kept["why"] = report.longrepr[-1]
        elif report.failed:
            kept["why"] = report.longreprtext[-KEPT_CHARACTERS:]
            last = kept["why"].strip().splitlines()[-1][:300]
            self.part.note(f"FAILED: {report.nodeid}: {last}")
        self.outcomes[report.nodeid] = kept
        self.part.add(running=None, tests=self.outcomes)


def main():
    part = Part(__doc__)
    marked = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    recorder = Recorder(part)
    options = ["-m", "gpu", "-q", "-ra", "-p", "no:cacheprovider", "-c", f"{ROOT}/pyproject.toml"]
    # Without the settings of the full suite: plugins that it needs may not be here, and what the
    # packages of another machine warn of is no failure.
    options += ["-o", "addopts=", "-o", "filterwarnings=default"]
    # A file that cannot be imported here is a failure, and keeps no other from being run.
    options += ["--continue-on-collection-errors"]
    status = pytest.main([*options, *marked], plugins=[recorder])
    outcomes = recorder.outcomes
    counts = Counter(each["outcome"] for each in outcomes.values())
    size = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none"
    failed = counts["failed"]
    row = Row("tests marked `gpu` that fail", size, len(outcomes), failed, None, "")
    part.add(row.held_to(Limit(0), failed))
    skipped = Counter(each["why"] for each in outcomes.values() if each["outcome"] == "skipped")
    for why, count in skipped.items():
        part.note(f"{count} of them: {why}")
    sys.exit(int(status))


if __name__ == "__main__":
    main()
