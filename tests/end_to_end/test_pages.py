"""What README, CONTRIBUTING and the pages in docs say is so: code, commands, links and figures."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_group

import lawa_opt
from baselines.methods.names import find, split_names
from baselines.workloads import NAMES
from timing import POLICIES
from timing.rst.operations import OPERATIONS
from timing.rst.policy import uncharged

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *DOCS.glob("*.md"),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(PAGES)}
PACKAGES = ("lawa_opt", "timing", "baselines")
SCRIPTS = ("benchmarks", "docs", "examples", "studies")
# Options of others: pip, mkdocs, pytest, typer, torchrun.
OPTIONS_OF_OTHERS = {"--hypothesis-profile", "--install-completion", "--strict"}


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return [(name, block) for name, text in TEXTS.items() for block in pattern.findall(text)]


def said(program: str) -> list[tuple[str, str]]:
    """Return page and words of what is written as a command, in text or in a block."""
    pattern = re.compile(rf"{program}[^`\n|]*(?:\n[^`\n]+(?=`))?")
    return [
        (name, " ".join(found.split()))
        for name, text in TEXTS.items()
        for found in pattern.findall(text)
    ]


COMMANDS = said(r"(?<=-m )(?:lawa_opt|timing|baselines)\b")
SCRIPT_COMMANDS = said(rf"(?<=python )(?:{'|'.join(SCRIPTS)})/")


@functools.cache
def options() -> dict[tuple[str, str], set[str]]:
    """Return the options of each command of each package; those of the package itself under ""."""
    found = {}
    for package in PACKAGES:
        group = get_group(importlib.import_module(f"{package}.cli.app").app)
        for name, command in {"": group, **group.commands}.items():
            words = (word for each in command.params for word in (*each.opts, *each.secondary_opts))
            found[package, name] = {"--help", *words}
    return found


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_blocks_run(page: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_there_is_an_example_in_the_readme() -> None:
    assert any(page == "README.md" for page, _ in blocks("python"))


def test_blocks_of_shell_are_in_the_readme_alone_where_they_are_run() -> None:
    assert {page for page, _ in blocks("sh")} == {"README.md"}
    assert not blocks("bash")


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_are_there_with_their_options(page: str, line: str) -> None:
    package, *words = shlex.split(line)
    assert words, f"{page}: python -m {line} does nothing"
    name = "" if words[0].startswith("--") else words[0]
    assert (package, name) in options(), f"{page}: {package} has no command {name}"
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options()[package, name], f"{page}: {line}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_the_version(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = importlib.import_module(f"{package}.cli.app").app
    assert app(["--version"], standalone_mode=False) == 0
    assert capsys.readouterr().out == f"lawa-opt {lawa_opt.__version__}\n"


@pytest.mark.parametrize(("page", "line"), SCRIPT_COMMANDS)
def test_scripts_are_there_with_their_options(page: str, line: str) -> None:
    name, *words = shlex.split(line)
    script = ROOT / name
    assert script.exists(), page
    beside = "".join(path.read_text() for path in script.parent.glob("*.py"))
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in beside, f"{page}: {line}"


def test_the_options_named_alone_are_there() -> None:
    known = OPTIONS_OF_OTHERS.union(*options().values())
    # Those of scripts.
    scripts = "".join(
        path.read_text() for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")
    )
    for page, text in TEXTS.items():
        for named in re.findall(r"`(--[a-z][a-z-]*)", text):
            assert named in known or f'"{named}"' in scripts, f"{page}: {named}"


def test_the_methods_that_are_named_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lists = [
        (page, names)
        for page, text in TEXTS.items()
        for names in re.findall(r"--methods[ =]\"?((?:\([^)]*\)|[^\s`\"()])+)", text)
    ]
    assert lists
    for page, names in lists:
        for name in split_names(names):
            # A page's `mine.py` is the reader's.
            assert find(name.replace("mine.py", "examples/own_recipe.py")), f"{page}: {name}"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", head.lower())) for head in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.read_text()), link


def test_every_extra_that_is_named_is_there() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for page, text in TEXTS.items():
        extras = re.findall(r"(?:'\.|lawa-opt)\[([a-z,-]+)\]", text)
        extras += re.findall(r"extras? `([a-z-]+)`", text)
        for extra in ",".join(extras).split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE), f"{page}: {extra}"


def test_the_quick_start_has_all_extras() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    table = pyproject.split("[project.optional-dependencies]")[1].split("\n\n")[0]
    for extra in re.findall(r"^([a-z-]+) = \[", table, flags=re.MULTILINE):
        assert f"`{extra}`" in TEXTS["docs/quick_start.md"], extra


def test_examples_are_included_from_their_files_and_run_by_tests() -> None:
    included = {
        name
        for text in TEXTS.values()
        for name in re.findall(r'^--8<-- "(.*)"$', text, re.MULTILINE)
    }
    text = "".join(TEXTS.values())
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for example in (ROOT / "examples").glob("*.py"):
        assert example.relative_to(ROOT).as_posix() in included | set(
            re.findall(r"examples/\w+\.py", text)
        )
        # By name or by path.
        assert re.search(rf"""["'/]{example.stem}(?:\.py)?["')]""", tests), example
    assert all((ROOT / name).exists() for name in included)
    assert not [page for page, block in blocks("python") if block.startswith("--8<--")]


def test_operations_and_policies_are_those_of_the_code() -> None:
    page = TEXTS["docs/rst.md"]
    purposes = dict(
        re.findall(r"^\| (training|reported model|beside training) \| (.*?) \|", page, re.MULTILINE)
    )
    charged = dict(
        re.findall(
            r"^\| (training|reported model|beside training) \|.*\| (.*?) \|$", page, re.MULTILINE
        )
    )
    said_operations = {
        name: purpose
        for purpose, names in purposes.items()
        for name in re.findall(r"`(\w+)`", names)
    }
    assert len(said_operations) > 5
    assert said_operations.items() <= OPERATIONS.items()
    for name, purpose in OPERATIONS.items():
        policies = {policy for policy in POLICIES if name not in uncharged(policy)}
        said_policies = set(re.findall(r"`(\w+)`", charged[purpose])) or set(POLICIES)
        assert said_policies == policies, name


def test_the_workloads_are_all_there() -> None:
    rows = re.findall(r"^\| (`.*?) \|", TEXTS["docs/comparison.md"], flags=re.MULTILINE)
    assert set(NAMES) <= set(re.findall(r"`([\w-]+)`", " ".join(rows)))


def results_of(title: str) -> str:
    """The section of the results with this title, in one line."""
    found = TEXTS["docs/results.md"].split(f"## {title}\n")[1].split("\n## ")[0]
    return " ".join(found.split())


def check_shares(told: str, found: str) -> None:
    """Check that every share with its interval was found, from its sign on."""
    shares = re.findall(r"[^\s(]*% \[[^]]*\]", told)
    assert shares
    for share in shares:
        assert f" {share}" in found


def test_the_figures_of_the_claims_are_those_that_were_found() -> None:
    told = results_of("The papers' claims")
    found = " ".join(
        finding["evidence"]
        for path in (DOCS / "claims").glob("*-pydocs.json")
        for finding in json.loads(path.read_text()).get("findings", ())
    )
    check_shares(told, found)
    counts = re.findall(r"\d+ of \d+", told)
    assert counts
    assert all(count in found for count in counts)


def test_the_figures_of_the_recipes_are_those_that_were_found() -> None:
    pages = (DOCS / "claims").glob("no-train-no-gain-*.md")
    check_shares(results_of("Training recipes"), " ".join(path.read_text() for path in pages))
