"""The pages that are made from elsewhere: README as the index, CONTRIBUTING, and the claims.

The page of the claims is what the files of `studies` have written to `docs/claims`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
CLAIMS = ("head_start", "equal_rst", "averaging_and_decay", "auto_interval")
WORKLOADS = ("pydocs", "digits")
ABOUT_CLAIMS = """# The papers' claims, on small trainings

A verdict is what the intervals support; "does not settle" means that so many seeds cannot tell."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, their links as seen from the docs folder."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        for other, its_page in PAGES.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    files.append(File.generated(config, "claims.md", content=claims()))
    return files


def claims() -> str:
    """What the claims found on each workload: all verdicts in a table, then each at length."""
    table = [["claim", *WORKLOADS], ["---"] * (1 + len(WORKLOADS))]
    sections = []
    for name in CLAIMS:
        source = (ROOT / "studies" / f"{name}.py").read_text()
        title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
        sections.append(f"## {title.rstrip('.')}\n\n{text.rpartition('`python')[0].strip()}")
        verdicts: dict[str, list[str]] = {}
        for workload in WORKLOADS:
            path = f"claims/{name.replace('_', '-')}-{workload}"
            found = json.loads((ROOT / "docs" / f"{path}.json").read_text())
            command = f"python studies/{name}.py --workload {workload}"
            sections += [
                f"### On {workload}",
                f"`{command} --seeds {len(found['seeds'])} --out docs/claims`",
                f"![{title} {workload}]({path}.png)",
            ]
            for finding in found["findings"]:
                verdicts.setdefault(finding["claim"], []).append(finding["verdict"])
                verdict = finding["verdict"].capitalize()
                sections.append(f"- **{verdict}**: {finding['claim']}: {finding['evidence']}.")
            sections.append(f"({found['conditions']})")
        table += [[claim, *found] for claim, found in verdicts.items()]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return "\n\n".join([ABOUT_CLAIMS, rows, *sections]) + "\n"
