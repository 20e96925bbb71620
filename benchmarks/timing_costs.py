"""What accounting and step timing cost a step, and what NVML says beside CUDA events.

    python benchmarks/timing_costs.py [--rounds 30] [--gpu-seconds 40]

One thread, CPU time of the process. In each round everyone runs in turn, a thousand steps each;
shown are medians over the rounds. The floor is a bare pair of `perf_counter()`. Limits: 2 µs a step
for accounting (one `Account.charge` and one `Budget.spent`), 10 µs for step timing on the CPU.
Exits with 1 if one is missed. The comparison on the GPU is skipped, and says so, where there is
none.
"""

import argparse
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from timing import Account, Budget
from timing.gpu import GpuMeter
from timing.steps import StepTimer

STEPS = 1000
ACCOUNTING_LIMIT_US, TIMING_LIMIT_US = 2.0, 10.0

COSTS = {
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
    for _ in range(STEPS):
        account.charge("train_step")
        budget.spent(account)
        account.charge("collect")
        budget.spent(account)
        budget.left(account)
        budget.spent(account)
        budget.left(account)


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
    }
    for call in calls.values():
        microseconds(*call)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(microseconds(*call))
    return taken


def costs_table(console, rounds):
    taken = measure(rounds)
    limits = {
        "charge and spent": ACCOUNTING_LIMIT_US,
        "with timer(phase)": TIMING_LIMIT_US,
        "start(phase) and stop()": TIMING_LIMIT_US,
    }
    floor = taken["bare pair of perf_counter()"]
    table = Table(title=f"A step, on the CPU; medians of {rounds} rounds of {STEPS:,} steps")
    for column in ("", "µs", "times the floor", "limit, µs"):
        table.add_column(column, justify="right" if column else "left")
    missed = []
    for name, each in taken.items():
        median = statistics.median(each)
        ratio = statistics.median(one / bare for one, bare in zip(each, floor, strict=True))
        limit = limits.get(name)
        table.add_row(name, f"{median:.2f}", f"{ratio:.1f}", "" if limit is None else f"{limit:g}")
        if limit is not None and median > limit:
            missed.append(f"{name} costs {median:.2f} µs, above {limit:g}")
    console.print(table)
    return missed


def gpu_tables(console, seconds, rounds):
    """Step timing by events, and one span of work by NVML and by CUDA events."""
    if not torch.cuda.is_available():
        console.print("GPU: skipped, CUDA sees none here")
        return
    torch.cuda.init()
    taken = [microseconds(timed_blocks, StepTimer()) for _ in range(rounds)]
    console.print(f"A pass timed by CUDA events costs {statistics.median(taken):.2f} µs")

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
            *(gap for use in used for gap in use.gaps),
            meter.absence or "no reading of this GPU",
        ]
        console.print(f"NVML beside CUDA events: skipped, {'; '.join(why)}")
        return
    active = used[0].active
    table = Table(title=f"{used[0].name}: {used[0].window_seconds:.1f} s, two thirds of it busy")
    for column in ("source", "active, s", "bound, s", "over events"):
        table.add_column(column, justify="left" if column == "source" else "right")
    table.add_row("CUDA events", f"{by_events:.3f}", "", "")
    table.add_row(
        f"NVML, {active.source}, {active.scope}",
        f"{active.gpu_active_seconds:.3f}",
        f"{active.bound_seconds:.3f}",
        f"{active.gpu_active_seconds / by_events - 1:+.2%}",
    )
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--gpu-seconds", type=float, default=40.0, help="at least 20")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    missed = costs_table(console, arguments.rounds)
    gpu_tables(console, arguments.gpu_seconds, arguments.rounds)
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
