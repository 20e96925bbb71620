"""What recording a comparison costs its training.

    python benchmarks/tracking.py [--rounds 5] [--seconds 6]

The same comparison of the pydocs workload, with a tracker over a store of its own and without one,
alternately. The time that training spent in the tracker's methods, as a share of the whole, is all
that it waits for. The ratio of both durations, round by round, has the noise of the machine in it.
The processor time of the process that sends is not noticed where there is a core to spare. Starting
and ending are apart: they do not grow with the training.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from baselines.comparison import Plan, compare
from baselines.methods import Settings
from baselines.reference import measure_profile
from baselines.tracker import Tracker
from baselines.workloads import load
from timing import Budget


class Nobody:
    """A listener that does nothing."""

    def run_started(self, method, seed): ...

    def point(self, method, seed, point): ...

    def trajectory_ended(self, trajectory): ...


class Timed:
    """Hands on to a tracker and adds up the seconds."""

    def __init__(self, tracker):
        self.tracker = tracker
        self.seconds = 0.0

    def __getattr__(self, name):
        method = getattr(self.tracker, name)

        def timed(*arguments):
            started = time.perf_counter()
            method(*arguments)
            self.seconds += time.perf_counter() - started

        return timed


def cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="the budget of a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = load("pydocs")
    plan = Plan(
        workload=workload,
        methods=("constant", "lawa", "decayed"),
        seeds=(0,),
        budget=Budget(options.seconds),
        settings=Settings(workload.learning_rate, 5, "auto"),
    )
    profile = measure_profile(plan, lambda *_: None)
    shares, ratios, ends, sending = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        os.chdir(folder)
        # The store is made before, as it is there in all comparisons but the first.
        with Tracker(plan, profile):
            pass
        for _ in range(options.rounds):
            started = time.perf_counter()
            compare(plan, profile, Nobody())
            without = time.perf_counter() - started
            before = cpu_seconds_of_children()
            entered = time.perf_counter()
            with Tracker(plan, profile) as tracker:
                timed = Timed(tracker)
                started = time.perf_counter()
                compare(plan, profile, timed)
                ended = time.perf_counter()
            ends.append(started - entered + time.perf_counter() - ended)
            sending.append(cpu_seconds_of_children() - before)
            shares.append(timed.seconds / (ended - started))
            ratios.append((ended - started) / without)
    print(f"training waits for it   {statistics.median(shares):.3%} of its time")
    spread = f"from {min(ratios):.4f} to {max(ratios):.4f}"
    print(f"with / without          {statistics.median(ratios):.4f} ({spread})")
    print(f"start and end together  {statistics.median(ends):.1f} s, once a comparison")
    print(f"the sender's CPU time   {statistics.median(sending):.1f} s, once a comparison")


if __name__ == "__main__":
    main()
