"""What accounting and step timing cost a step, and what NVML says beside CUDA events.

    python benchmarks/timing_costs.py [--rounds 30] [--gpu-seconds 40] [--quick] [--json FILE]

One thread, CPU time of the process. In each round everyone runs in turn, a thousand steps each;
shown are medians over the rounds. The floor is a bare pair of `perf_counter()`. Limits: 2 µs a step
for accounting (one `Account.charge` and one `Budget.spent`), 10 µs for step timing on the CPU, and
25 µs for all that watching a training adds to a step of it, which is 0.5% of a step of 5 ms.
The comparison on the GPU is skipped, and says so, where there is none.
"""

import time

import torch
from rows import Limit, Row, finish, parser

from timing import Account, Budget
from timing.clocks.step_timer import StepTimer
from timing.gpu.meter import GpuMeter

STEPS = 1000
ACCOUNTING, TIMING = Limit(2.0), Limit(10.0)
WATCHING = Limit(25.0)
WATCHED = "what watching adds to a step of a training"

COSTS = {
    "load_data": 6.07e-5,
    "train_step": 1.0437e-3,
    "collect": 2.31e-5,
    "average": 7.13e-5,
    "ema_update": 4.77e-5,
    "evaluate": 1.7903e-3,
}


def bare_pair():
    for _ in range(STEPS):
        time.perf_counter()
        time.perf_counter()


def accounting(budget, account):
    for _ in range(STEPS):
        account.charge("train_step")
        budget.spent(account)


def accounting_in_training(budget, account):
    # What the training loop asks for in a step of LAWA, the learning rate's schedule included.
    step = account.cost_femtoseconds({"load_data": 1, "train_step": 1, "collect": 1})
    for _ in range(STEPS):
        account.charge("load_data")
        account.charge("train_step")
        budget.spent(account)
        account.charge("collect")
        budget.spent(account)
        budget.affords(account, step)


def timed_blocks(timer):
    for _ in range(STEPS):
        with timer("train_step"):
            pass


def timed_calls(timer):
    for _ in range(STEPS):
        timer.start("train_step")
        timer.stop()


def nested(timer):
    for _ in range(STEPS):
        with timer("train_step"), timer("load_data"):
            pass


def watched(timer):
    """As the training loop: a step named by what ran in it, and the loading of a batch within."""
    for _ in range(STEPS):
        timer.start("step")
        timer.start("load_data")
        timer.stop()
        timer.stop("train_step")


def used_account():
    """An account under way: every operation has been charged, as it is after a few steps."""
    account = Account(COSTS)
    for operation in COSTS:
        account.charge(operation)
    return account


def microseconds(call, *arguments):
    start = time.process_time_ns()
    call(*arguments)
    return (time.process_time_ns() - start) / STEPS / 1e3


def measure(rounds):
    """Microseconds a step, by who and round."""
    budget = Budget(3600.0)
    calls = {
        "bare pair of perf_counter()": (bare_pair,),
        "charge and spent": (accounting, budget, used_account()),
        "all that training asks for in a step": (accounting_in_training, budget, used_account()),
        "with timer(phase)": (timed_blocks, StepTimer()),
        "start(phase) and stop()": (timed_calls, StepTimer()),
        "two phases, one in the other": (nested, StepTimer()),
        WATCHED: (watched, StepTimer()),
    }
    for call in calls.values():
        microseconds(*call)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(microseconds(*call))
    return taken


def cost_rows(rounds):
    taken = measure(rounds)
    limits = {
        "charge and spent": ACCOUNTING,
        "with timer(phase)": TIMING,
        "start(phase) and stop()": TIMING,
        WATCHED: WATCHING,
    }
    floor = taken.pop("bare pair of perf_counter()")
    for name, each in taken.items():
        yield Row.of(name, "a step, CPU", "µs", each, floor=floor, limit=limits.get(name))


def gpu_rows(seconds, rounds, notes):
    """Step timing by events, and one span of work by NVML and by CUDA events."""
    if not torch.cuda.is_available():
        notes.append("GPU: skipped, CUDA sees none here")
        return
    torch.cuda.init()
    taken = [microseconds(timed_blocks, StepTimer()) for _ in range(rounds)]
    yield Row.of("with timer(phase)", "a step, CUDA events", "µs", taken)
    taken = [microseconds(watched, StepTimer()) for _ in range(rounds)]
    yield Row.of(WATCHED, "a step, CUDA events", "µs", taken, limit=WATCHING)

    timer = StepTimer()
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with GpuMeter() as meter:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            spell = time.perf_counter() + 2
            while time.perf_counter() < spell:
                with timer("train_step"):
                    for _ in range(20):
                        matrix @ matrix
                # The queue stays short, so that a spell ends when it is meant to.
                torch.cuda.synchronize()
            # A meter that always says "busy" would agree without this.
            time.sleep(1)
    phase = timer.phases()["train_step"]
    by_events = phase.total_seconds + phase.warm_up_seconds
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    used = [use for use in meter.uses if use.uuid == uuid]
    if not used or used[0].active is None:
        why = [
            *(why for use in used for why in use.unavailable),
            meter.unavailable or "no reading of this GPU",
        ]
        notes.append(f"NVML beside CUDA events: skipped, {'; '.join(why)}")
        return
    active = used[0].active
    span = f"{used[0].name}, {used[0].window_seconds:.1f} s, two thirds of it busy"
    nvml = f"active by NVML, {active.source}, {active.scope}"
    yield Row.of("active by CUDA events", span, "s", [by_events])
    yield Row.of(nvml, span, "s", [active.gpu_active_seconds], {"CUDA events": [by_events]})
    notes.append(f"NVML's active seconds are known to {active.bound_seconds:.3f} s.")


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--gpu-seconds", type=float, default=40.0, help="at least 20")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if options.quick else options.rounds
    notes = []
    rows = [*cost_rows(rounds), *gpu_rows(options.gpu_seconds, rounds, notes)]
    finish(rows, notes, options)


if __name__ == "__main__":
    main()
