"""Peak memory and time of averaging k checkpoint files, against peers and the floor.

    python benchmarks/checkpoints.py [--mb 160] [--rounds 5] [--threads 1] [--quick] [--json FILE]

Each run is a fresh process, timed without its imports, the files in the page cache. Everyone writes
the same file and flushes it to the disk. Ratios are medians over rounds of pairs run in turn. The
floor reads every byte once and writes one checkpoint; of memory, it is one checkpoint. The folders
of torch.distributed.checkpoint (dcp) are of one rank, and peers turn each into a file first.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peers import OfflineAveraging
from rich.progress import track
from rows import Limit, Row, finish, parser
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import lawa_opt

# Kinds of files and how many are averaged; the targets are for the largest.
CASES = [("safetensors", 2), ("safetensors", 5), ("safetensors", 10), ("pt", 10), ("dcp", 10)]
PEAK = Limit(1.3, "the floor")
TIME = Limit(1.0, "load_all_and_average")


def load(path):
    if path.is_dir():
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:
            dcp_to_torch_save(path, file.name)
            return torch.load(file.name, weights_only=True)["model"]
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def save(state, path):
    if path.suffix == ".dcp":
        save_dcp({"model": state}, checkpoint_id=path, no_dist=True)
        return
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def files_of(path):
    return [*path.iterdir()] if path.is_dir() else [path]


def bytes_of(path):
    return sum(file.stat().st_size for file in files_of(path))


def average_checkpoints(paths, out):
    lawa_opt.average_checkpoints(paths, out, key="model" if out.suffix == ".dcp" else "")


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


def papers_offline(paths, out):
    averaging = OfflineAveraging(len(paths))
    for path in paths:
        averaging.add(load(path))
    save(averaging.mean, out)


def floor(paths, out):
    """Read every byte once and write one checkpoint's worth."""
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        for each in files_of(path):
            with each.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    with out.open("wb") as file:
        for _ in range(bytes_of(paths[0]) // len(buffer)):
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())


OURS = "average_checkpoints"
CALLS = (average_checkpoints, load_all_and_average, one_at_a_time, papers_offline, floor)
METHODS = {call.__name__: call for call in CALLS}


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
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    return results


def rows_of(suffix, k, mb, rounds, threads):
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), suffix, k, mb, torch.float32)
        one = bytes_of(paths[0])
        results = measure(paths, Path(folder) / f"out.{suffix}", rounds, threads)
    size = f"{suffix}, k={k} of {one / 1e6:.0f} MB"
    seconds = {name: [run["seconds"] for run in runs] for name, runs in results.items()}
    peaks = {name: [run["peak"] / one for run in runs] for name, runs in results.items()}
    bare = seconds.pop("floor")
    peaks.pop("floor")
    ours = seconds.pop(OURS), peaks.pop(OURS)
    limits = (TIME, PEAK) if k == 10 else (None, None)
    yield Row.of("averaging files", size, "s", ours[0], seconds, bare, limits[0])
    yield Row.of("peak", size, "x a checkpoint", ours[1], peaks, [1.0] * rounds, limits[1])


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--mb", type=float, default=160, help="megabytes of each file")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1, help="of torch; 0 for its default")
    options = arguments.parse_args()
    cases, mb, rounds = CASES, options.mb, options.rounds
    if options.quick:
        cases, mb, rounds = [("safetensors", 2), ("pt", 2)], 10, 1
    rows = []
    for suffix, k in track(cases, "each kind of files"):
        rows += rows_of(suffix, k, mb, rounds, options.threads)
    finish(sorted(rows, key=lambda row: row.work), [], options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
