"""Peak memory and time of averaging k checkpoint files, against peers and the floor.

    python benchmarks/checkpoints.py [--k 10] [--mb 160] [--rounds 5] [--threads 1] [--dtype ...]

Each run is a fresh process, timed without its imports, the files in the page cache. Everyone writes
the same file and flushes it to the disk. Ratios are medians over rounds of pairs run in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from lawa_opt import average_checkpoints


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def save(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load_all_and_average(paths, out):
    states = [load(path) for path in paths]
    mean = {}
    for name, first in states[0].items():
        total = sum(state[name].float() for state in states)
        mean[name] = (total / len(states)).to(first.dtype)
    save(mean, out)


def one_at_a_time(paths, out):
    first = load(paths[0])
    total = {name: tensor.to(torch.float32, copy=True) for name, tensor in first.items()}
    for path in paths[1:]:
        for name, tensor in load(path).items():
            total[name] += tensor
    save({name: (total[name] / len(paths)).to(first[name].dtype) for name in total}, out)


def floor(paths, out):
    """Read every byte once and write one checkpoint's worth."""
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with out.open("wb") as file:
        for _ in range(paths[0].stat().st_size // len(buffer)):
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())


METHODS = {f.__name__: f for f in (average_checkpoints, load_all_and_average, one_at_a_time, floor)}


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def child(method, threads, out, *paths):
    """One measurement: seconds, and bytes of memory above what the process had before."""
    if threads != "0":
        torch.set_num_threads(int(threads))
    before = status("VmRSS")
    start = time.perf_counter()
    METHODS[method]([Path(path) for path in paths], Path(out))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": status("VmHWM") - before}))


def make(folder, suffix, k, mb, dtype):
    """Checkpoints of about `mb` megabytes in the shapes of a small transformer."""
    layer = [(1536, 512), (512, 512), (2048, 512), (512, 2048), *[(512,)] * 6]
    layers = max(1, round(mb * 1e6 / dtype.itemsize / sum(torch.Size(s).numel() for s in layer)))
    for i in range(k):
        state = {
            f"layers.{j}.{n}": torch.randn(shape, dtype=dtype)
            for j in range(layers)
            for n, shape in enumerate(layer)
        }
        save(state, folder / f"{i}.{suffix}")
    return [folder / f"{i}.{suffix}" for i in range(k)]


def measure(paths, out, rounds, threads):
    """All methods in turn, in every round from another one on."""
    results = {name: [] for name in METHODS}
    for i in range(rounds):
        names = [*METHODS][i % len(METHODS) :] + [*METHODS][: i % len(METHODS)]
        for name in names:
            command = [sys.executable, __file__, "--child", name, str(threads), out, *paths]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name].append(json.loads(done.stdout))
            out.unlink()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=10, help="checkpoints")
    parser.add_argument("--mb", type=float, default=160, help="megabytes of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its default")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    console = Console(width=110)
    for suffix in ("safetensors", "pt"):
        with tempfile.TemporaryDirectory() as folder:
            dtype = getattr(torch, args.dtype)
            paths = make(Path(folder), suffix, args.k, args.mb, dtype)
            one = paths[0].stat().st_size
            results = measure(paths, Path(folder) / f"out.{suffix}", args.rounds, args.threads)
        table = Table(
            title=f"{suffix}, {args.dtype}: k = {args.k} of {one / 1e6:.0f} MB; "
            f"floor: {one * args.k / 1e6:.0f} MB read + {one / 1e6:.0f} MB written"
        )
        for column in ("method", "median s", "s / floor's", "peer's s / ours", "peak / checkpoint"):
            table.add_column(column, justify="left" if column == "method" else "right")

        def ratio(above, below, results=results):
            pairs = zip(results[above], results[below], strict=True)
            return f"{statistics.median(a['seconds'] / b['seconds'] for a, b in pairs):.2f}"

        for name, runs in results.items():
            seconds = statistics.median(run["seconds"] for run in runs)
            peak = max(run["peak"] for run in runs) / one
            times = (ratio(name, "floor"), ratio(name, "average_checkpoints"))
            table.add_row(name, f"{seconds:.3f}", *times, f"{peak:.2f}")
        console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
