"""What collecting, reading and swapping cost beside LAWA's peers and the physical floor.

    python benchmarks/averaging.py [--rounds 15] [--device cuda] [--quick] [--json FILE]

One process, one thread: processor time on the CPU, the time between CUDA events on a GPU. In each
round everyone runs in turn; ratios are medians over the rounds. The floor is what the bytes that
must move take at the speed of a bare copy, which moves 2 * N bytes: one copy for a collect,
(k + 1) / 2 for a reading of k snapshots, and (k + 5) / 2 for the swap of their mean into the model
and out again. A collect's copy finds the parameters where the collect does, maybe in the cache; a
reading's is of what k other copies have pushed out of it, as they do with snapshots. For a window
in pinned memory the floor is one bare copy to there, and k for each reading.
Windows, copies and peers are made anew several times, for it matters where in memory they come to
lie. Where a size does not say otherwise, k is 5. Targets are held from 10 million parameters on,
where no window fits into the cache, so that its bytes do move.
"""

import gc
import math

import psutil
import torch
from peers import ABSENT, swaps, updates
from rich.progress import track
from rows import Limit, Row, cpu_seconds, cuda_seconds, finish, parser, scaled, seconds_of
from torch import nn

from lawa_opt import LAWA

K = 5
MILLIONS = (0.1, 1, 10, 28, 100)
LAYOUTS = {"many": 500, "few": 7}
DTYPES = (torch.float32, torch.bfloat16)
WINDOWS = (1, 2, 5, 10, 20)
GROWTH_MILLIONS = 10
# Where in memory a window happens to lie can make a reading a fifth slower or faster on a CPU.
PLACEMENTS = {cpu_seconds: 4, cuda_seconds: 2}
# Models, windows and copies that are alive at once, in copies of the parameters.
COPIES_AT_ONCE = 27
COLLECTING = Limit(1.15, "the floor")
READING = Limit(1.25, "the floor")
# In millions of parameters: from here on targets are held.
BEYOND_THE_CACHE = 10


class Model(nn.Module):
    def __init__(self, millions, tensors, dtype, device="cpu"):
        super().__init__()
        rows = math.ceil(millions * 1e6 / tensors / 8)
        self.weights = nn.ParameterList(
            torch.randn(rows, 8, device=device).to(dtype) for _ in range(tensors)
        )


def held(model, limit):
    """The limit, if it holds for a model of this size."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return limit if millions >= BEYOND_THE_CACHE else None


def label(millions, tensors, dtype):
    return f"{millions:g} M in {tensors} tensors, {str(dtype).removeprefix('torch.')}"


def bare_copy(model, device=None, k=K):
    """A copy to where the window is; to k places in turn, so as to miss the cache as it does."""
    parameters = list(model.parameters())
    pinned = device == "cpu" and parameters[0].is_cuda
    targets = [
        [torch.empty_like(p, device=device, pin_memory=pinned) for p in parameters]
        for _ in range(k)
    ]
    return in_turn([parameters] * k, targets)


def copy_of_old(model, k=K):
    """A copy of what k other copies have pushed out of the cache, as a reading its snapshots."""
    copies = [[p.detach().clone() for p in model.parameters()] for _ in range(k + 1)]
    return in_turn([*copies[1:], copies[0]], copies)


def in_turn(sources, targets):
    """A copy of each source to its target, one at a call; all were made once."""
    turn = iter(range(1 << 60))

    @torch.no_grad()
    def copy_once():
        at = next(turn) % len(targets)
        torch._foreach_copy_(targets[at], sources[at], non_blocking=True)

    for _ in targets:
        copy_once()
    return copy_once


def lawa_of(model, k=K, device=None):
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.0), k=k, every="manual", device=device)
    for _ in range(k):
        opt.collect()
    return opt


def milliseconds_of(make_calls, rounds, seconds):
    """Of each call, round by round, over several placements in memory."""
    taken = {}
    placements = min(PLACEMENTS[seconds], rounds)
    for _ in range(placements):
        for name, each in seconds_of(make_calls(), -(-rounds // placements), seconds).items():
            taken.setdefault(name, []).extend(scaled(each, 1e3))
        gc.collect()
    return taken


def collecting_row(model, size, rounds, seconds, k=K, window=None, others=True, leave_out=()):
    """LAWA's collect, beside what each peer does in its place, but for those left out by name."""

    def calls():
        return {
            "floor": bare_copy(model, window, k),
            "LAWA": lawa_of(model, k, window).collect,
            **(updates(model, k, leave_out) if others else {}),
        }

    taken = milliseconds_of(calls, rounds, seconds)
    floor, ours = taken.pop("floor"), taken.pop("LAWA")
    return Row.of("collecting", size, "ms", ours, taken, floor, held(model, COLLECTING))


def reading_rows(model, size, rounds, seconds, k=K, window=None, others=True, leave_out=()):
    """The mean into tensors that are there; into the model and out again; as a state dict."""

    def calls():
        opt = lawa_of(model, k, window)
        readings = [
            (ring, [torch.empty_like(tensor) for tensor in ring.tensors])
            for ring in opt.window.rings
        ]

        def read():
            for ring, outs in readings:
                ring.write_mean(outs)

        def swap():
            with opt.averaged():
                pass

        made = {
            "copy": copy_of_old(model, k) if window is None else bare_copy(model, window, k),
            "reading the mean": read,
            "averaged() and back": swap,
            "averaged_state_dict()": lambda: opt.averaged_state_dict(model),
        }
        return made | (swaps(model, k, leave_out) if others else {})

    (_, copy), *taken = milliseconds_of(calls, rounds, seconds).items()
    ours, peers = dict(taken[:3]), dict(taken[3:])
    for work, samples in ours.items():
        copies = (k + (5 if "back" in work else 1)) / 2 if window is None else k
        floor = scaled(copy, copies)
        limit = held(model, READING) if work == "reading the mean" and k == K else None
        yield Row.of(work, size, "ms", samples, peers, floor, limit)


def exponent(sizes, values):
    """The slope of a line through the logarithms: 1 for what grows in proportion."""
    xs, ys = ([math.log(value) for value in each] for each in (sizes, values))
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - x_mean) ** 2 for x in xs)


def growth_row(work, over, sizes, rows):
    fitted = exponent(sizes, [row.median for row in rows])
    return Row(f"{work}: exponent of its growth", f"over {over}", len(rows), fitted, None, "")


def by_k(rounds, seconds, device, millions, windows):
    """Collecting must not depend on k; a reading moves k + 1 times the bytes."""
    collects, reads = [], []
    for k in track(windows, "each k"):
        model = Model(millions, LAYOUTS["few"], torch.float32, device)
        size = f"{label(millions, LAYOUTS['few'], torch.float32)}, k={k}"
        collects.append(collecting_row(model, size, rounds, seconds, k, others=False))
        reads.append(next(reading_rows(model, size, rounds, seconds, k, others=False)))
    yield from collects
    yield from reads
    yield growth_row("collecting", "k", windows, collects)
    yield growth_row("reading the mean", "k + 1", [k + 1 for k in windows], reads)


def by_size(rounds, seconds, device, sizes, notes):
    collects, reads = [], []
    cells = [(m, t, d) for m in sizes for t in LAYOUTS.values() for d in DTYPES]
    for millions, tensors, dtype in track(cells, "each size"):
        size = label(millions, tensors, dtype)
        if not fits(millions * 1e6 * dtype.itemsize * COPIES_AT_ONCE, device):
            notes.append(f"{size}: skipped, the memory of this machine does not hold all peers")
            continue
        # Fewer rounds of the largest: they take as long, and scatter less.
        turns = min(rounds, max(2 * PLACEMENTS[seconds], round(rounds * 10 / millions) + 2))
        collects.append(
            collecting_row(Model(millions, tensors, dtype, device), size, turns, seconds)
        )
        model = Model(millions, tensors, dtype, device)
        reads += reading_rows(model, size, turns, seconds)
    yield from collects
    yield from sorted(reads, key=lambda row: row.work)
    large = [m for m in sizes if m >= 1]
    for work, rows in (("collecting", collects), ("reading the mean", reads)):
        fitted = {
            m: row
            for m in large
            for row in rows
            if row.size == label(m, LAYOUTS["few"], torch.float32) and row.work == work
        }
        if len(fitted) > 1:
            over = f"parameters from {min(fitted):g} to {max(fitted):g} M, few tensors, float32"
            yield growth_row(work, over, [*fitted], [*fitted.values()])


def in_pinned_memory(rounds, sizes, seconds=cuda_seconds, device="cuda", window="cpu"):
    """The window of a model on the GPU in the host's memory; what training waits for."""
    for millions in sizes:
        for dtype in DTYPES:
            size = label(millions, LAYOUTS["few"], dtype) + ", window in pinned memory"
            model = Model(millions, LAYOUTS["few"], dtype, device)
            common = {"window": window, "others": False}
            yield collecting_row(model, size, rounds, seconds, **common)
            yield from reading_rows(model, size, rounds, seconds, **common)


def fits(needed, device):
    if device == "cuda":
        return needed < torch.cuda.mem_get_info()[0]
    return needed < psutil.virtual_memory().available


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--device", choices=("cpu", "cuda"), help="by default all there are")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rounds, sizes, windows = options.rounds, MILLIONS, WINDOWS
    growth_millions = GROWTH_MILLIONS
    if options.quick:
        rounds, sizes, windows, growth_millions = 2, (0.1, 1), (1, 2), 1
    rows, notes = [], [*ABSENT]
    if options.device != "cuda":
        rows += by_size(rounds, cpu_seconds, "cpu", sizes, notes)
        rows += by_k(rounds, cpu_seconds, "cpu", growth_millions, windows)
    if options.device != "cpu":
        if torch.cuda.is_available():
            on_gpu = [
                *by_size(rounds, cuda_seconds, "cuda", sizes, notes),
                *by_k(rounds, cuda_seconds, "cuda", growth_millions, windows),
                *in_pinned_memory(rounds, sizes),
            ]
            rows += [row.at(f"{row.size}, GPU") for row in on_gpu]
        else:
            notes.append("GPU: skipped, CUDA sees none here")
    finish(rows, notes, options)


if __name__ == "__main__":
    main()
