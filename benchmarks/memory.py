"""Memory at the peak of LAWA and of its peers, and what a collect allocates.

    python benchmarks/memory.py [--millions 28] [--quick] [--json FILE]

Torch's memory is outside of what Python can trace, so each way to average runs in a process of its
own, and the peak is that of its resident set (Linux), or of torch's allocator on a GPU, above what
model and gradients had taken before; in times the bytes of the parameters. The floor is what must
be held: k snapshots, and while the average is in the model the live weights besides, unless the
newest snapshot is these. Where there is more to a name than LAWA, that is how it is read: after
the weights have moved on, by other weights, or twice with its mean kept.
"""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from averaging import Model
from ema_pytorch import EMA
from peers import DECAY, LAWAScheduler, ema, swa
from rich.progress import track
from rows import Limit, Row, finish, parser
from schedulefree import SGDScheduleFree
from torch.profiler import ProfilerActivity, profile

from lawa_opt import LAWA

K = 5
TENSORS = 7
NO_ALLOCATION = Limit(0)


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


class Peak:
    """Bytes at the peak above those at the start."""

    def __init__(self, device):
        self.on_gpu = device == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            # The kernel forgets the peak so far.
            Path("/proc/self/clear_refs").write_text("5")
            self.start = resident("VmRSS")

    def bytes(self):
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")
        return peak - self.start


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-9)


def lawa(model, moved_on=False, weights="uniform", **window):
    """Its collects, and then two readings."""
    opt = LAWA(sgd(model), k=K, every=1, **window)

    def read():
        if moved_on:
            for p in model.parameters():
                p.data.add_(1)
        for _ in range(2):
            with opt.averaged(weights=weights):
                pass

    return opt.step, read


def averaged_model(make):
    def made(model):
        average, opt = make(model), sgd(model)

        def step():
            opt.step()
            average.update_parameters(model)

        def read():
            live = copy.deepcopy(model.state_dict())
            model.load_state_dict(average.module.state_dict())
            model.load_state_dict(live)

        return step, read

    return made


def ema_pytorch(model):
    average, opt = EMA(model, beta=DECAY, update_after_step=0, update_every=1), sgd(model)

    def step():
        opt.step()
        average.update()

    # It is evaluated as a model of its own.
    return step, lambda: None


def lawa_scheduler(model):
    scheduler, opt = LAWAScheduler(model, K), sgd(model)

    def step():
        opt.step()
        scheduler.collect()

    return step, scheduler.transfer


def schedule_free(model):
    opt = SGDScheduleFree(model.parameters(), lr=1e-9)
    opt.train()

    def read():
        opt.eval()
        opt.train()

    return opt.step, read


# With the floors of the window, and of what a reading adds.
OURS = {
    "LAWA": (lawa, K, 0),
    "LAWA, moved on": (partial(lawa, moved_on=True), K, 1),
    "LAWA, weights": (partial(lawa, weights="1-sqrt"), K, 0),
    "LAWA, cache": (partial(lawa, cache=True), K, 1),
    "LAWA, bfloat16 window": (partial(lawa, dtype=torch.bfloat16), K / 2, 1),
}
PEERS = {
    "AveragedModel, EMA": averaged_model(ema),
    "AveragedModel, SWA": averaged_model(swa),
    "ema-pytorch": ema_pytorch,
    "LAWAScheduler": lawa_scheduler,
    "Schedule-Free": schedule_free,
}


def child(name, millions, device):
    """Print both peaks of one way to average, in times the bytes of the parameters."""
    torch.set_num_threads(1)
    model = Model(millions, TENSORS, torch.float32, device)
    for p in model.parameters():
        p.grad = torch.zeros_like(p).fill_(1e-9)
    sgd(model).step()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    make = OURS[name][0] if name in OURS else PEERS[name]
    peak = Peak(device)
    step, read = make(model)
    for _ in range(2 * K + 1):
        step()
    training = peak.bytes() / parameters
    read()
    print(json.dumps([training, peak.bytes() / parameters]))


def peaks(name, millions, device):
    command = [sys.executable, __file__, "--child", name, str(millions), device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_rows(millions, device, rounds):
    names = [*OURS, *PEERS]
    measured = {
        name: [peaks(name, millions, device) for _ in range(rounds)]
        for name in track(names, f"peak memory, {device}")
    }
    works = {"peak while training": 0, "peak while it is read as well": 1}
    for work, index in works.items():
        peers = {name: [run[index] for run in measured[name]] for name in PEERS}
        for name, (_, window, reading) in OURS.items():
            size = f"{name}, {millions:g} M, float32, {'GPU' if device == 'cuda' else 'CPU'}"
            samples = [run[index] for run in measured[name]]
            floor = [window + index * reading] * rounds
            yield Row.of(work, size, "x the parameters", samples, peers, floor)


def allocation_rows(device):
    """Bytes that torch's allocator hands out in collects, the window full."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for tensors in (TENSORS, 500):
        model = Model(1, tensors, torch.float32, device)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt = LAWA(sgd(model), k=K, every="manual")
        for _ in range(2 * K):
            opt.step()
            opt.collect()
        with profile(activities=activities, profile_memory=True) as profiler:
            for _ in range(2 * K):
                opt.collect()
        field = "self_device_memory_usage" if device == "cuda" else "self_cpu_memory_usage"
        events = [getattr(event, field) for event in profiler.events()]
        handed_out = sum(size for size in events if size > 0)
        size = f"1 M in {tensors} tensors, {'GPU' if device == 'cuda' else 'CPU'}"
        work = f"allocated in {2 * K} collects, the window full"
        yield Row.of(work, size, "bytes", [handed_out], limit=NO_ALLOCATION)


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--millions", type=float, default=28)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    millions, rounds = (4, 1) if options.quick else (options.millions, 3)
    rows, notes = [], []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            notes.append("GPU: skipped, CUDA sees none here")
            continue
        rows += [*peak_rows(millions, device, rounds), *allocation_rows(device)]
    finish(rows, notes, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), sys.argv[4])
    else:
        main()
