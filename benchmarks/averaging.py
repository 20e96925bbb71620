"""What LAWA costs beside its peers and the physical floor.

    python benchmarks/averaging.py [--rounds 15] [--steps 10000] [--skip-training]

One process, one thread, CPU time of the process. In each round everyone runs in turn, and what is
shown is the median over the rounds of the ratio to a bare copy in the same round. A bare copy moves
2 * N bytes, so a reading of k snapshots, which cannot move fewer than (k + 1) * N, has a floor of
(k + 1) / 2 copies, and the swap of the mean into the model and out again, which moves 4 * N more,
one of (k + 5) / 2.
"""

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lawa_opt import LAWA

K = 5
SHAPES = {
    "500 tensors of 1,024": [(32, 32)] * 500,
    "500 tensors of 16,384": [(128, 128)] * 500,
    "7 tensors of 4,194,304": [(2048, 2048)] * 7,
}
# Rotating copies miss the cache as the window does; less than this is repeated within a round.
SHORTEST_S = 0.02


class Model(nn.Module):
    def __init__(self, shapes, dtype):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape).to(dtype) for shape in shapes)


class LAWAScheduler:
    """The algorithm of the paper's code: deep copies on the CPU, summed anew at each transfer."""

    def __init__(self, model):
        self.model = model
        self.store = []

    def collect(self):
        self.store.append(copy.deepcopy(self.model).to("cpu").state_dict())
        self.store = self.store[-K:]

    def transfer(self):
        mean = copy.deepcopy(self.store[0])
        for state in self.store[1:]:
            for name in mean:
                mean[name] += copy.deepcopy(state[name])
        for name in mean:
            mean[name] /= len(self.store)
        self.model.load_state_dict(mean)


def timm_ema():
    """timm's class, from its file alone: the package imports torchvision, which may not fit."""
    package = importlib.util.find_spec("timm")
    if package is None:
        return None
    path = Path(package.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelEmaV3


def seconds(call):
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e9


def measured(calls, rounds):
    """Seconds of each call in each round, of enough runs to be well above the clock's grain."""
    for call in calls.values():
        call()
    repeats = max(1, round(SHORTEST_S / max(1e-6, seconds(calls["bare copy"]))))

    def repeated(call):
        def run():
            for _ in range(repeats):
                call()

        return run

    runs = {name: repeated(call) for name, call in calls.items()}
    times = [{name: seconds(run) / repeats for name, run in runs.items()} for _ in range(rounds)]
    return {name: [row[name] for row in times] for name in calls}


def bare_copy(model):
    parameters = list(model.parameters())
    targets = [[p.detach().clone() for p in parameters] for _ in range(K)]
    turn = iter(range(1 << 60))

    @torch.no_grad()
    def copy_once():
        torch._foreach_copy_(targets[next(turn) % K], parameters)

    return copy_once


def lawa_of(model):
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.0), k=K, every="manual")
    for _ in range(K):
        opt.collect()
    return opt


def collecting(model):
    """Everyone's work at one collect."""
    calls = {"bare copy": bare_copy(model), "LAWA": lawa_of(model).collect}
    peers = {"EMA": get_ema_multi_avg_fn(0.999), "SWA": get_swa_multi_avg_fn()}
    for name, average in peers.items():
        peer = AveragedModel(model, multi_avg_fn=average)
        calls[f"AveragedModel, {name}"] = lambda peer=peer: peer.update_parameters(model)
    if importlib.util.find_spec("ema_pytorch"):
        from ema_pytorch import EMA

        ema = EMA(model, beta=0.999, update_after_step=0, update_every=1)
        calls["ema-pytorch"] = ema.update
    if (kind := timm_ema()) is not None:
        timm = kind(model, decay=0.999)
        calls["timm ModelEmaV3"] = lambda: timm.update(model)
    calls["LAWAScheduler"] = LAWAScheduler(model).collect
    return calls


def reading(model):
    """The mean of k snapshots into tensors that are there, and into the model and out again."""
    opt = lawa_of(model)
    [ring] = opt.window.rings
    outs = [torch.empty_like(p) for p in model.parameters()]
    scheduler = LAWAScheduler(copy.deepcopy(model))
    for _ in range(K):
        scheduler.collect()

    def swap():
        with opt.averaged():
            pass

    return {
        "bare copy": bare_copy(model),
        "LAWA, into tensors": lambda: ring.write_mean(outs),
        "LAWA, averaged() and back": swap,
        "LAWA, averaged_state_dict()": lambda: opt.averaged_state_dict(model),
        "LAWAScheduler, transfer": scheduler.transfer,
    }


def table_of(title, columns):
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "who") else "right")
    return table


def memory_tables(console, rounds):
    collects = table_of("Collecting", ["model", "who", "ms", "times a bare copy"])
    reads = table_of(
        f"Reading the mean of k={K}", ["model", "who", "ms", "times the floor", "floor in copies"]
    )
    for name, shapes in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            times = measured(collecting(Model(shapes, dtype)), rounds)
            for who in times:
                collects.add_row(label, who, milliseconds(times[who]), ratio(times, who))
            times = measured(reading(Model(shapes, dtype)), rounds)
            for who in list(times)[1:]:
                floor = (K + (5 if "back" in who else 1)) / 2
                row = ratio(times, who, floor), f"{floor:g}"
                reads.add_row(label, who, milliseconds(times[who]), *row)
            collects.add_section()
            reads.add_section()
    console.print(collects, reads)


def milliseconds(times):
    return f"{statistics.median(times) * 1e3:.3f}"


def ratio(times, who, floor=1.0):
    pairs = zip(times[who], times["bare copy"], strict=True)
    return f"{statistics.median(one / (other * floor) for one, other in pairs):.2f}"


class Nothing(torch.optim.SGD):
    """Its step does nothing, so that what a wrapper adds is not lost in it."""

    def step(self, closure=None):
        pass


def step_table(console, rounds):
    table = table_of("step() without a collect", ["who", "µs over the wrapped optimizer's"])
    parameters = [nn.Parameter(torch.zeros(8)) for _ in range(50)]
    for every in ("auto", 10**12, "manual"):
        base = Nothing(parameters, lr=0.0)
        opt = LAWA(base, every=every)
        opt.interval.step = opt.interval.newest = 10**9
        differences = []
        for _ in range(20 * rounds):
            with_lawa, without = (
                seconds(lambda step=step: [step() for _ in range(200)]) / 200
                for step in (opt.step, base.step)
            )
            differences.append(with_lawa - without)
        assert opt.held == 0
        table.add_row(f"LAWA, every={every!r}", f"{statistics.median(differences) * 1e6:.2f}")
    console.print(table)


def training_table(console, steps):
    """The share of a real training that goes into LAWA, step by step."""
    from baselines.workloads import pydocs

    workload = pydocs.load()
    torch.manual_seed(0)
    model = workload.make_model()
    opt = LAWA(workload.make_optimizer(model, workload.learning_rate), every="auto")
    batches = workload.batches(0)
    spent = {"training": 0.0, "LAWA": 0.0}
    base_step = opt.base.step
    for _ in range(steps):
        start = time.process_time_ns()
        opt.zero_grad()
        workload.loss(model, next(batches)).backward()
        inner = []

        def timed_step(*args, inner=inner, **kwargs):
            inner.append(time.process_time_ns())
            base_step(*args, **kwargs)
            inner.append(time.process_time_ns())

        opt.base.step = timed_step
        before = time.process_time_ns()
        opt.step()
        end = time.process_time_ns()
        own = (end - before) - (inner[1] - inner[0])
        spent["LAWA"] += own / 1e9
        spent["training"] += (end - start - own) / 1e9
    table = table_of(f'every="auto" over {steps:,} steps of pydocs', ["", "seconds", "share"])
    for who, took in spent.items():
        table.add_row(who, f"{took:.3f}", f"{100 * took / spent['training']:.2f}%")
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10_000, help="of training on pydocs")
    parser.add_argument("--skip-training", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    console.print(f"torch {torch.__version__}, one thread, medians of {arguments.rounds} rounds")
    step_table(console, arguments.rounds)
    memory_tables(console, arguments.rounds)
    if not arguments.skip_training:
        training_table(console, arguments.steps)


if __name__ == "__main__":
    main()
