"""Write the page of a run from the files of its parts: `python -m on_gpu_parts.page DIR`."""

import argparse
import json
import re
import sys
from pathlib import Path

from all import GPU_HEADING, RESULTS, description, markdown_table, targets
from on_gpu import PAGE, PARTS
from rows import Row, tables

HERE = Path(__file__).parent
COMMAND = "python benchmarks/on_gpu.py"


def found_in(folder):
    """What each part has left in a folder, by name, in their order."""
    files = {name: folder / f"{name}.json" for name in PARTS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if not found:
        sys.exit(f"{folder} holds no run: give the folder that was --out of {COMMAND}")
    return found


def header(found):
    """On what it ran, and how far each part came."""
    parts = [GPU_HEADING, f"Written by `{COMMAND}`; nothing in it is edited by hand."]
    if any(each.get("smoke") for each in found.values()):
        parts.append(
            "**TRIED WITH --smoke, on a CPU and with a small NVML library of the tests: the "
            "figures say nothing.**"
        )
    for each in found.values():
        if "machine" in each:
            software = ", ".join(f"{name} {value}" for name, value in each["software"].items())
            commit = each.get("commit") or "not known: there was no repository, and no --commit"
            about = f"Commit: {commit}", f"Machine: {each['machine']}", f"Software: {software}"
            parts.append("\n".join(f"- {line}" for line in about))
            break
    lines = ["| part | seconds | of at most | |", "| --- | --- | --- | --- |"]
    for name in PARTS:
        each = found.get(name, {"failure": "it was not run"})
        became = f"**FAILED**: {each['failure']}" if each.get("failure") else "ended well"
        taken, most = each.get("seconds", "·"), each.get("limit_seconds", "·")
        lines.append(f"| {name} | {taken} | {most} | {became.replace('|', '/')} |")
    return "\n\n".join([*parts, "\n".join(lines)])


def section(name, found):
    """What one part is about, and what it has found."""
    title, said = description(HERE / f"{name}.py")
    parts = [f"### {title}", said]
    if found.get("failure"):
        parts.append(f"**FAILED**: {found['failure']}. What there is was found before.")
    rows = [Row(**row) for row in found["rows"]]
    parts += [markdown_table(part) for part in tables(rows)]
    parts.append("\n".join(f"- {note}" for note in found["notes"]))
    data = found.get("data", {})
    if "report" in data:
        parts.append(re.sub("^## ", "#### ", data["report"], flags=re.MULTILINE))
    if "root" in data:
        parts.append(
            "To have it in MLflow, unpack `comparison.tar.gz` on a machine that has MLflow and "
            f"this project, and there `python -m baselines publish {data['root']}`; "
            f"`python -m baselines score {data['root']}` reads it too."
        )
    return "\n\n".join(part for part in parts if part)


def page(found):
    """The whole page, as a section of a file of results."""
    of_targets = targets(found.values()).replace("## Targets", "### Targets")
    sections = (section(name, each) for name, each in found.items())
    return "\n\n".join([header(found), of_targets, *sections]) + "\n"


def publish(found, into):
    """Write the page into a file of results, in the place of the one before."""
    if into is None and any(each.get("smoke") for each in found.values()):
        sys.exit("this run was only tried (--smoke), its figures say nothing: give --into FILE")
    into = into or RESULTS
    text = into.read_text() if into.exists() else ""
    before = text.partition(GPU_HEADING)[0].rstrip()
    into.write_text("\n\n".join(part for part in (before, page(found)) if part))
    print(f"wrote {into}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--publish", action="store_true", help="into RESULTS.md")
    arguments.add_argument("--into", type=Path, metavar="FILE", help="publish there")
    options = arguments.parse_args()
    found = found_in(options.folder)
    if options.publish:
        publish(found, options.into)
    else:
        # A page of its own, so each heading is one level higher.
        text = re.sub("^##", "#", page(found), flags=re.MULTILINE)
        (options.folder / PAGE).write_text(text)


if __name__ == "__main__":
    main()
