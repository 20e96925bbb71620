"""What README, CONTRIBUTING and the pages in docs say is run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.core import TyperCommand
from typer.main import get_group

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PACKAGES = ("lawa_opt", "timing", "baselines")


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return [(name, block) for name, text in TEXTS.items() for block in pattern.findall(text)]


def said_commands() -> list[tuple[str, str]]:
    """What is written as `python -m PACKAGE ...`, within a line of text or in a block."""
    pattern = re.compile(r"python -m ((?:lawa_opt|timing|baselines)\b[^`\n|]*(?:\n[^`\n]+(?=`))?)")
    return [(name, said) for name, text in TEXTS.items() for said in pattern.findall(text)]


def command(package: str, name: str) -> TyperCommand:
    return get_group(importlib.import_module(f"{package}.__main__").app).commands[name]


def options(found: TyperCommand) -> set[str]:
    return {"--help"}.union(*((*each.opts, *each.secondary_opts) for each in found.params))


# What a page includes from a file is run where that file is.
OWN = [each for each in blocks("python") if not each[1].startswith("--8<--")]


@pytest.mark.parametrize(("page", "block"), OWN)
def test_python_blocks_run(page: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_there_is_an_example() -> None:
    assert any(page == "README.md" for page, _ in blocks("python"))


def test_the_two_commands_are_one_line_each() -> None:
    compare, tests = COMMANDS
    for line in (compare, tests):
        assert line.count("\n") == 1
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -c ")
    assert compare.strip().endswith("&& .venv/bin/python -m baselines compare")
    assert tests.strip().endswith("&& .venv/bin/python -m pytest -n auto --dist loadfile")


def test_the_other_pages_have_no_commands_that_are_not_run() -> None:
    assert [page for page, _ in blocks("sh")] == ["README.md"] * len(COMMANDS)
    assert not blocks("bash")


@pytest.mark.parametrize(("page", "said"), said_commands())
def test_commands_are_there_with_their_options(page: str, said: str) -> None:
    package, *words = shlex.split(said)
    assert words, f"{page}: python -m {said} does nothing"
    found = command(package, words[0])
    unknown = {word for word in words if word.startswith("--")} - options(found)
    assert not unknown, f"{page}: {words[0]} has no {unknown}"


def test_the_options_named_alone_are_there() -> None:
    known = {"--workers"}.union(
        *(
            options(found)
            for package in PACKAGES
            for found in get_group(
                importlib.import_module(f"{package}.__main__").app
            ).commands.values()
        )
    )
    named = re.findall(r"`(--[a-z-]+)", README)
    assert named
    assert set(named) <= known


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep --max-count=1 '([^']+)' README.md", script)
    assert pattern is not None
    found = [line for line in README.splitlines() if pattern[1] in line]
    assert found == [COMMANDS[1].strip()]


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert name.startswith("https://") or (ROOT / name).exists(), name


def test_every_extra_it_names_is_there() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"(?:-e '\.|lawa-opt)\[([a-z,-]+)\]", README)
    assert extras
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE), extra


def test_the_figures_of_the_claims_are_those_that_were_found() -> None:
    said = README.split("**The papers' claims**")[1].split("**If it is cut off.**")[0]
    found = " ".join(
        finding["evidence"]
        for path in (ROOT / "docs" / "claims").glob("*-pydocs.json")
        for finding in json.loads(path.read_text())["findings"]
    )
    shares = re.findall(r"[^\s(]*% \[[^]]*\]", " ".join(said.split()))
    assert shares
    for share in shares:
        assert f" {share}" in found  # from its sign on
    counts = re.findall(r"\d+ of \d+", said)
    assert counts
    assert all(count in found for count in counts)
