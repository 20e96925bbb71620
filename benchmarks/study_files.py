"""Seconds and peak memory of studying windows over checkpoints, against the loop that people write.

    python benchmarks/study_files.py [--files 30] [--mb 40] [--rounds 3] [--quick] [--json FILE]

30 files, windows of 1, 2, 4, 6 and 10: 127 averages, each evaluated by the same function, products
with 4 batches of 1,024 rows. Each run is a fresh process of one thread, in processor time without
its imports, the files in the page cache. The naive loop reads all files of each window anew. The
floor reads each file once, evaluates as often, and averages nothing. Ratios are medians over
rounds, everyone in turn.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from checkpoints import load, make, status
from rows import Limit, Row, finish, parser

from lawa_opt import study

WINDOWS = (1, 2, 4, 6, 10)
TIME = Limit(1.2, "the floor")
# The longest window, the average, files being read, and what the function takes.
PEAK = Limit(16)


def evaluate(state):
    """Return something that depends on all weights, at the cost of a small validation set."""
    total = 0.0
    batches = torch.ones(4, 1024, 512)
    for weight in state.values():
        if weight.ndim == 2 and weight.shape[1] == 512:
            for batch in batches:
                total += float((batch @ weight.t()).square().mean())
    return total


def windows_study(paths):
    found = study(paths, evaluate, k=WINDOWS)
    return {(p.step, p.window.k): p.values["metric"][1] for p in found.points}


def naive_loop(paths):
    found = {}
    for end in range(len(paths)):
        for k in WINDOWS:
            if k > end + 1:
                continue
            states = [load(path) for path in paths[end + 1 - k : end + 1]]
            mean = {name: sum(state[name] for state in states) / k for name in states[0]}
            found[end, k] = evaluate(mean)
    return found


def floor(paths):
    for end, path in enumerate(paths):
        state = {name: tensor.clone() for name, tensor in load(path).items()}
        for k in WINDOWS:
            if k <= end + 1:
                evaluate(state)


METHODS = {call.__name__: call for call in (windows_study, naive_loop, floor)}


def child(method, *paths):
    """One measurement: seconds, bytes above what the process had before, and what was found."""
    torch.set_num_threads(1)
    before = status("VmRSS")
    start = time.process_time()
    found = METHODS[method]([Path(path) for path in paths])
    seconds = time.process_time() - start
    peak = status("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak": peak, "found": [*(found or {}).values()]}))


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--files", type=int, default=30)
    arguments.add_argument("--mb", type=float, default=40, help="megabytes of each file")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    files, mb, rounds = options.files, options.mb, options.rounds
    if options.quick:
        files, mb, rounds = 12, 10, 1
    results = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), "pt", files, mb, torch.float32)
        one = paths[0].stat().st_size
        for i in range(rounds):
            names = [*METHODS][i % len(METHODS) :] + [*METHODS][: i % len(METHODS)]
            for name in names:
                command = [sys.executable, __file__, "--child", name, *paths]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[name].append(json.loads(done.stdout))
    for ours, theirs in zip(
        results["windows_study"][0]["found"], results["naive_loop"][0]["found"], strict=True
    ):
        assert abs(ours - theirs) <= 1e-4 * abs(theirs), (
            "the study and the loop found other metrics"
        )
    size = f"{files} files of {one / 1e6:.0f} MB, {len(WINDOWS)} windows"
    seconds = {name: [run["seconds"] for run in runs] for name, runs in results.items()}
    peaks = {name: [run["peak"] / one for run in runs] for name, runs in results.items()}
    bare = seconds.pop("floor")
    ours, peak = seconds.pop("windows_study"), peaks.pop("windows_study")
    peaks.pop("floor")
    rows = [
        Row.of("studying files", size, "s", ours, seconds, bare, TIME),
        Row.of("peak", size, "x a checkpoint", peak, peaks, None, PEAK),
    ]
    finish(rows, [], options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
