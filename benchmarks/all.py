"""Run every benchmark, one after another, and write what they found to benchmarks/RESULTS.md.

    python benchmarks/all.py [--quick --out FILE] [--only NAME...]

Some 40 minutes on two quiet cores, up to three times as long on shared ones. Each benchmark is a
process of its own and hands its rows on as data; a target that is missed is marked so. A benchmark
that fails has a section that says so, and the command then exits with 1. The last section, on a
GPU, is written by `on_gpu.py`, and kept as it is.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rows import Row, columns, number, tables

from timing import this_machine, this_software

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
BENCHMARKS = (
    "averaging",
    "training_steps",
    "memory",
    "checkpoints",
    "merge_commands",
    "study_files",
    "timing_costs",
    "same_rst",
    "rst_against_time",
    "tracking",
    "faults",
)
PEERS = ("ema-pytorch", "schedulefree", "safetensors", "mlflow", "nvidia-ml-py")
COMMAND = "python benchmarks/all.py"
GPU_HEADING = "## On a GPU"
GPU_NOT_RUN = f"""{GPU_HEADING}

Not run yet. `python benchmarks/on_gpu.py --out DIR` is for a machine with a GPU, and
`python benchmarks/on_gpu.py --publish DIR` writes this section from the files of that run."""


class Load:
    """Mean number of cores that others than this process and its children kept busy."""

    def __init__(self):
        self.before = self.clocks()

    @staticmethod
    def clocks():
        system = psutil.cpu_times()
        busy = sum(system) - system.idle - getattr(system, "iowait", 0.0)
        busy -= getattr(system, "guest", 0.0) + getattr(system, "guest_nice", 0.0)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            own = resource.getrusage(who)
            busy -= own.ru_utime + own.ru_stime
        return time.perf_counter(), busy

    def other_cores(self):
        (start, before), (end, after) = self.before, self.clocks()
        return max(0.0, (after - before) / (end - start))


def run(name, quick, folder):
    """The rows and notes of a benchmark; or, as the second of the pair, how it failed."""
    written = Path(folder) / f"{name}.json"
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(written)]
    done = subprocess.run(
        [*command, *["--quick"] * quick],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    sys.stderr.write(done.stderr)
    if not written.exists():
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        here = said[-1].replace(sys.executable, "python").replace(f"{HERE.parent}/", "")
        return None, f"exit status {done.returncode}: {here}"
    return json.loads(written.read_text()), None


def description(path):
    """The docstring of a benchmark's file: its title, and what it says below the usage."""
    text = path.read_text().split('"""')[1].strip()
    title, *paragraphs = text.split("\n\n")
    said = [each for each in paragraphs if not each.startswith("    ")]
    return title.rstrip("."), "\n\n".join(said)


def markdown_table(rows):
    lines = [columns(rows[0]), ["---"] * len(columns(rows[0])), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def section(name, result, failure, seconds, other_cores):
    title, said = description(HERE / f"{name}.py")
    parts = [
        f"## {title}",
        f"`python benchmarks/{name}.py`, {seconds:.0f} s, while others kept "
        f"{other_cores:.2f} cores busy.",
        said,
    ]
    if failure is not None:
        parts.append(f"**FAILED**, there is no result: {failure}")
    else:
        rows = [Row(**row) for row in result["rows"]]
        parts += [markdown_table(part) for part in tables(rows)]
        parts += ["\n".join(f"- {note}" for note in result["notes"])]
    return "\n\n".join(part for part in parts if part)


def targets(results):
    """Every row with a target, those that were missed first."""
    rows = [Row(**row) for result in results if result for row in result["rows"]]
    with_target = sorted((row for row in rows if row.target), key=lambda row: row.met)
    missed = sum(not row.met for row in with_target)
    head = f"{len(with_target) - missed} of {len(with_target)} are met."
    lines = [["", "work", "size", "target", "reached"], ["---"] * 5]
    for row in with_target:
        work, size, *_, target, met = row.cells()
        lines.append([met, work, size, target, number(row.reached)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## Targets\n\n{head}\n\n{table}"


def gpu_section(results):
    """The section on a GPU as it is in a file of results, or that there is none yet."""
    text = results.read_text() if results.exists() else ""
    _, heading, rest = text.partition(GPU_HEADING)
    return (heading + rest).rstrip() or GPU_NOT_RUN


def header(started, quick, other_cores, minutes):
    software = this_software()
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions.append(f"lawa-opt {software.lawa_opt}")
    if software.cuda and torch.cuda.is_available():
        versions += [f"CUDA {software.cuda}", f"driver {software.driver}"]
    for peer in PEERS:
        try:
            versions.append(f"{peer} {version(peer)}")
        except PackageNotFoundError:
            versions.append(f"{peer} not installed")
    lines = [
        "# Results",
        f"Written by `{COMMAND}`; nothing in it is edited by hand.",
    ]
    if quick:
        lines.append(
            "**TRIED WITH --quick: sizes and rounds are too small for the figures to say "
            "anything.**"
        )
    lines += [
        f"- Machine: {this_machine()}\n"
        f"- Software: {', '.join(versions)}\n"
        f"- Date: {started:%Y-%m-%d %H:%M} UTC, {minutes:.0f} minutes\n"
        f"- Load: others kept {other_cores:.2f} cores busy on average (a quiet machine: 0.05)",
        'n is the number of rounds or runs; the spread, IQR, is the interquartile range. "x NAME" '
        "is how many times as much as NAME's the row's own is, the median over pairs of one round, "
        '"x floor" the same for the least that is possible, which each section names.',
    ]
    return "\n\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="to try it; needs --out")
    arguments.add_argument("--out", type=Path, help=f"by default {RESULTS.name} beside this file")
    arguments.add_argument("--only", nargs="+", choices=BENCHMARKS, help="needs --out")
    options = arguments.parse_args()
    if options.out is None and (options.quick or options.only):
        arguments.error(f"--quick and --only need --out FILE: {RESULTS.name} is of a whole run")
    torch.set_num_threads(1)
    console = Console()
    names = options.only or BENCHMARKS
    started, start, load = datetime.now(UTC), time.perf_counter(), Load()
    sections, results, failures = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, 1):
            console.rule(f"{number} of {len(names)}: {name}")
            begun, around = time.perf_counter(), Load()
            result, failure = run(name, options.quick, folder)
            taken = time.perf_counter() - begun
            sections.append(section(name, result, failure, taken, around.other_cores()))
            results.append(result)
            if failure is not None:
                failures[name] = failure
    minutes = (time.perf_counter() - start) / 60
    top = header(started, options.quick, load.other_cores(), minutes)
    out = options.out or RESULTS
    parts = [top, targets(results), *sections, gpu_section(RESULTS)]
    out.write_text("\n\n".join(parts) + "\n")
    console.print(f"wrote {out}")
    if failures:
        sys.exit(f"FAILED: {', '.join(failures)}")


if __name__ == "__main__":
    main()
