"""What is counted and charged stays what it was, to the last digit, whatever moves in the code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import golden_runs
import pytest

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.slow


def golden(name: str) -> Any:
    return json.loads((golden_runs.GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_counts_and_charges_what_it_did(jobs: int, tmp_path: Path) -> None:
    assert golden_runs.exact(golden_runs.comparison(tmp_path, jobs)) == golden("comparison")


def test_an_ablation_counts_and_charges_what_it_did() -> None:
    assert golden_runs.exact(golden_runs.ablation()) == golden("ablation")
