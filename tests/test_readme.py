"""What the README says is run."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_two_commands_are_one_line_each() -> None:
    compare, tests = COMMANDS
    for command in (compare, tests):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -c ")
    assert compare.strip().endswith("&& .venv/bin/python -m baselines compare")
    assert tests.strip().endswith("&& .venv/bin/python -m pytest")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep --max-count=1 '([^']+)' README.md", script)
    assert pattern is not None
    found = [line for line in README.splitlines() if pattern[1] in line]
    assert found == [COMMANDS[1].strip()]


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert name.startswith("https://") or (ROOT / name).exists(), name
