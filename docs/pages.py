"""The pages that are made from elsewhere, when the documents are built.

README is the first page. The page of the claims is what the files of `studies` have written to
`docs/claims`, and the reference begins with a table of all public names and what they are for.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "measurements.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
PACKAGES = ("lawa_opt", "timing", "baselines")
CLAIMS = ("head_start", "equal_rst", "averaging_and_decay", "auto_interval", "quantised")
WORKLOADS = ("pydocs", "digits", "regression")
ABOUT_CLAIMS = """# The papers' claims, on small trainings

A verdict is what the intervals support; "does not settle" means that so many seeds cannot tell."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        if page.endswith(".md"):
            # As a page in docs would have these links.
            text = re.sub(r"\]\((?!https?:|#|\.\./)(docs/)?", r"](../\1", text)
            text = links_among_pages(text.replace("](../docs/", "]("))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "claims.md", content=claims()))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Have links that hold in the repository hold among the pages."""
    del page
    return links_among_pages(markdown)


def links_among_pages(text: str) -> str:
    """Return the text of a page in docs with links to the pages that are made here."""
    for source, page in PAGES.items():
        text = re.sub(rf"\]\(\.\./{re.escape(source)}(?=[)#])", f"]({page}", text)
    return text.replace("](claims/)", "](claims.md)")


def reference() -> str:
    """Return a table of all public names, each with the first line of its docstring."""
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)])
    sections = [
        "# Reference",
        "From the docstrings. Each name leads to all that there is about it.",
    ]
    for package in PACKAGES:
        module = loader.load(package)
        loader.resolve_aliases()
        rows = [f"| [`{package}`]({package}.md) | |", "|---|---|"]
        for name in sorted(module.exports or (), key=lambda name: str(name).lower()):
            found = module[str(name)]
            lines = found.docstring.value.splitlines() if found.docstring else [""]
            rows.append(
                f"| [`{name}`][{package}.{name}] | {lines[0].replace('|', chr(92) + '|')} |"
            )
        sections.append("\n".join(rows))
    return "\n\n".join(sections) + "\n"


def claims() -> str:
    """What the claims found on each workload: all verdicts in a table, then each at length."""
    table = [["claim", *WORKLOADS], ["---"] * (1 + len(WORKLOADS))]
    sections = []
    for name in CLAIMS:
        source = (ROOT / "studies" / f"{name}.py").read_text()
        title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
        sections.append(f"## {title.rstrip('.')}\n\n{text.rpartition('`python')[0].strip()}")
        verdicts: dict[str, dict[str, str]] = {}
        for workload in WORKLOADS:
            path = f"claims/{name.replace('_', '-')}-{workload}"
            file = ROOT / "docs" / f"{path}.json"
            # The older ones are tried on two workloads.
            if not file.exists():
                continue
            found = json.loads(file.read_text())
            command = f"python studies/{name}.py --workload {workload}"
            sections += [
                f"### On {workload}",
                f"`{command} --seeds {len(found['seeds'])} --out docs/claims`",
                f"![{title} {workload}]({path}.png)",
            ]
            for finding in found["findings"]:
                verdicts.setdefault(finding["claim"], {})[workload] = finding["verdict"]
                verdict = finding["verdict"].capitalize()
                sections.append(f"- **{verdict}**: {finding['claim']}: {finding['evidence']}.")
            sections.append(f"({found['conditions']})")
        table += [
            [claim, *(found.get(workload, "·") for workload in WORKLOADS)]
            for claim, found in verdicts.items()
        ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return "\n\n".join([ABOUT_CLAIMS, rows, *sections]) + "\n"
