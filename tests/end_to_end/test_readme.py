"""README is one screen and a half, and its commands and figures are so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
MOST_LINES = 130


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_its_two_commands_are_one_line_each_and_need_nothing_but_a_clone() -> None:
    compare, tests = COMMANDS
    for line in (compare, tests):
        assert line.count("\n") == 1
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -c ")
    assert compare.strip().endswith("&& .venv/bin/python -m baselines compare")
    assert tests.strip().endswith("&& .venv/bin/python -m pytest -n auto --dist loadfile")


def test_ci_runs_its_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep --max-count=1 '([^']+)' README.md", script)
    assert pattern is not None
    found = [line for line in README.splitlines() if pattern[1] in line]
    assert found == [COMMANDS[1].strip()]


def test_its_results_are_those_of_the_page_of_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    end, saved = (
        re.search(rf"^\| method \| {head}.*?\n\n", results, flags=re.DOTALL | re.MULTILINE)
        for head in ("15 s", "saved vs constant")
    )
    assert end is not None
    assert saved is not None
    rows = re.findall(
        r"^\| (.*? rate) \| ([\d.]+ ± [\d.]+) \| (.*?) \|$", README, flags=re.MULTILINE
    )
    assert len(rows) == 6
    for method, loss, share in rows:
        _, under_30_s = re.findall(
            rf"^\| {method} \| (.*?) \(\d\) \| (.*?) \(", end[0], re.MULTILINE
        )[0]
        assert loss == under_30_s
        assert re.search(rf"^\| {method} \| {share} \|", saved[0], re.MULTILINE), method


def test_each_share_it_tells_of_is_in_the_results() -> None:
    said = README.split("## Does it pay?")[1].split("| method |")[0]
    results = " ".join((ROOT / "docs" / "results.md").read_text().split())
    shares = re.findall(r"\d+% less", said)
    assert len(shares) == 2
    for share in shares:
        assert f"target with {share} RST" in results
