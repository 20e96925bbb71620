"""What averaging adds to the steps of a training.

    python benchmarks/training_steps.py [--rounds 15] [--steps 10000] [--quick] [--json FILE]

One thread, processor time. `step()` without a collect is timed against a wrapped optimizer that
does nothing. Whole steps are those of a training with each way to average, in turn, block by block;
the floor is the plain optimizer's. `every="auto"` is followed through a training of pydocs, and
through many steps of nothing, where the collects of each tenfold of the steps must be as many as
those of the one before: they grow with the logarithm.
"""

import math
import statistics
import time

import torch
from peers import DECAY, EMA, LAWAScheduler, ema, swa
from rich.progress import track
from rows import Limit, Row, cpu_seconds, finish, parser, scaled, seconds_of, undisturbed_rounds
from torch import nn

from baselines.workloads import pydocs
from lawa_opt import LAWA

K = 5
SPAN = 0.1
STEP_LIMIT = Limit(5.0)
# The share falls while training goes on: the target is for a training of so many steps.
SHARE_LIMIT, SHARE_STEPS = Limit(0.5), 10_000
# A block of whole steps, in which everyone that averages every tenth step does so once.
BLOCK = 10


class Nothing(torch.optim.SGD):
    """Its step does nothing, so that what a wrapper adds is not lost in it."""

    def step(self, closure=None):
        pass


def step_rows(rounds, device="cpu"):
    parameters = [nn.Parameter(torch.zeros(8, device=device)) for _ in range(50)]
    for every in ("auto", 10**12, "manual"):
        base = Nothing(parameters, lr=0.0)
        opt = LAWA(base, every=every)
        opt.schedule.steps = opt.schedule.last_collect = 10**9
        taken = seconds_of({"with": opt.step, "without": base.step}, 5 * rounds)
        pairs = zip(taken["with"], taken["without"], strict=True)
        over = [(ours - bare) * 1e6 for ours, bare in pairs]
        assert opt.num_snapshots == 0
        yield Row.of(
            "step() without a collect, over the wrapped optimizer's",
            f"50 tensors, every={every!r}",
            "µs",
            over,
            limit=STEP_LIMIT,
        )


def pydocs_training():
    workload = pydocs.load()
    return workload.make_model, workload.loss, workload.batches(0)


def mlp_training():
    """Many parameters and little work on each: the worst case for all that averages."""

    def make_model():
        return nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024))

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch), batch)

    return make_model, loss, iter(lambda: torch.randn(8, 1024), None)


def contestants(make_model, loss, batches):
    """One training step of each: a function without arguments, by name."""

    def contestant(make_optimizer, make_average=None, every=1):
        torch.manual_seed(0)
        model = make_model()
        opt = make_optimizer(model.parameters(), lr=1e-4)
        average = make_average(model) if make_average else None
        taken = 0

        def step():
            nonlocal taken
            opt.zero_grad()
            loss(model, next(batches)).backward()
            opt.step()
            taken += 1
            if average is not None and taken % every == 0:
                average()

        if hasattr(opt, "train"):
            opt.train()
        return step

    def lawa(every):
        return lambda parameters, lr: LAWA(torch.optim.AdamW(parameters, lr=lr), K, every)

    def updating(make):
        def made(model):
            average = make(model)
            return lambda: average.update_parameters(model)

        return made

    # Not at the top: `step_rows` is wanted where it is not installed, too.
    from schedulefree import AdamWScheduleFree

    plain = torch.optim.AdamW
    return {
        "plain AdamW": contestant(plain),
        "LAWA, every=1": contestant(lawa(1)),
        "LAWA, every=10": contestant(lawa(10)),
        "LAWAScheduler, every 10": contestant(plain, lambda m: LAWAScheduler(m, K).collect, 10),
        "AveragedModel, EMA": contestant(plain, updating(ema)),
        "AveragedModel, SWA": contestant(plain, updating(swa)),
        "ema-pytorch": contestant(
            plain, lambda m: EMA(m, beta=DECAY, update_after_step=0, update_every=1).update
        ),
        "Schedule-Free AdamW": contestant(AdamWScheduleFree),
    }


def whole_step_rows(rounds):
    for size, training in (("pydocs", pydocs_training), ("MLP of 8.4 M", mlp_training)):
        steps = contestants(*training())
        blocks = {
            name: lambda step=step: cpu_seconds(lambda: [step() for _ in range(BLOCK)])
            for name, step in steps.items()
        }
        # The first block warms up, and fills windows.
        for block in track(blocks.values(), f"warm-up, {size}"):
            block()
        taken = {
            name: scaled(each, 1e3 / BLOCK)
            for name, each in undisturbed_rounds(blocks, rounds).items()
        }
        floor = taken.pop("plain AdamW")
        ours = {name: taken.pop(name) for name in [*taken] if name.startswith("LAWA,")}
        for name, samples in ours.items():
            yield Row.of("whole training step", f"{size}, {name}", "ms", samples, taken, floor)


def share_row(steps):
    """The share of a real training's time that goes into LAWA."""
    workload = pydocs.load()
    torch.manual_seed(0)
    model = workload.make_model()
    opt = LAWA(workload.make_optimizer(model, workload.learning_rate), K, "auto", horizon=SPAN)
    batches = workload.batches(0)
    training = own = 0.0
    base_step = opt.base.step
    inner = []

    def timed_step(*args, **kwargs):
        inner.append(cpu_seconds(lambda: base_step(*args, **kwargs)))

    opt.base.step = timed_step
    for _ in track(range(steps), 'every="auto" in a training'):

        def forward_and_backward():
            opt.zero_grad()
            workload.loss(model, next(batches)).backward()

        training += cpu_seconds(forward_and_backward)
        outer = cpu_seconds(opt.step)
        training += inner[-1]
        own += outer - inner[-1]
    share = 100 * own / training
    work = 'every="auto": share of the training time'
    row = Row(work, f"pydocs, {steps:,} steps", 1, share, None, "%")
    return row.held_to(SHARE_LIMIT, share) if steps == SHARE_STEPS else row


def predicted(step):
    """Collects in so many steps: one a step up to k / span of them, then their logarithm."""
    dense = K / SPAN
    return dense * (1 + math.log(step / dense))


def logarithm_rows(decades):
    """Collects, and what they take, in each tenfold of the steps."""
    parameters = [nn.Parameter(torch.zeros(143_000)) for _ in range(7)]
    opt = LAWA(Nothing(parameters, lr=0.0), K, "auto", horizon=SPAN)
    collects, took, per_step = {}, {}, {}
    for decade in track(range(2, decades), "the logarithm"):
        end = 10 ** (decade + 1)
        collects[end], times = 0, []
        while opt.schedule.steps < end:
            start = time.process_time_ns()
            opt.step()
            taken = (time.process_time_ns() - start) / 1e6
            if opt.schedule.last_collect == opt.schedule.steps and opt.schedule.steps > 10**decade:
                times.append(taken)
        collects[end] = len(times)
        took[end] = sum(times)
        per_step[end] = statistics.mean(times)
    for end, count in collects.items():
        size = f"1 M, steps {end // 10:,} to {end:,}"
        expected = predicted(end) - predicted(end // 10)
        ratios = {"(k / span) ln 10": count / expected}
        yield Row('every="auto": collects', size, 1, count, None, "", ratios)
    for end, milliseconds in took.items():
        size = f"1 M, steps {end // 10:,} to {end:,}"
        yield Row('every="auto": time in collects', size, 1, milliseconds, None, "ms")
    for end, milliseconds in took.items():
        size = f"1 M, steps {end // 10:,} to {end:,}"
        each = scaled([milliseconds], 1e3 / (end - end // 10))[0]
        yield Row('every="auto": time in collects, a step', size, 1, each, None, "µs")


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--steps", type=int, default=SHARE_STEPS, help="of training on pydocs")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rounds, steps, decades = options.rounds, options.steps, 6
    if options.quick:
        rounds, steps, decades = 2, 200, 4
    rows = [
        *step_rows(rounds),
        *whole_step_rows(rounds),
        share_row(steps),
        *logarithm_rows(decades),
    ]
    finish(rows, [], options)


if __name__ == "__main__":
    main()
