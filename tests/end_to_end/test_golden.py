"""What is counted and charged stays what it was, to the last digit, whatever moves in the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import golden_runs
from tests.support.commands import command


def changes(name: str, found: Any) -> list[str]:
    golden = json.loads((golden_runs.GOLDEN / f"{name}.json").read_text())
    return list(golden_runs.differences(golden, golden_runs.exact(found)))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_counts_and_charges_what_it_did(jobs: int, tmp_path: Path) -> None:
    done = command(tmp_path, *golden_runs.COMPARE, "--jobs", str(jobs), "--no-publish")
    assert done.returncode == 0, done.stderr
    assert not changes("comparison", golden_runs.results(tmp_path))


def test_an_ablation_counts_and_charges_what_it_did() -> None:
    assert not changes("ablation", golden_runs.ablation())
