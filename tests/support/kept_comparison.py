"""A small comparison in a folder, that a test can start as a process and end in many ways.

`python kept_comparison.py FOLDER` carries it out, and prints its results as JSON.
"""

import json
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from baselines.experiment.comparison import Comparison
from baselines.experiment.lock import Lock
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder
from baselines.methods.names import find
from baselines.training.events import Event, Started
from baselines.workloads import load
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from timing import Budget

METHODS = ("constant", "ema", "swa", "lawa", "decayed", "lawa-decayed")


def plan_of(budget: float = 1.5, seeds: int = 2, methods: tuple[str, ...] = METHODS) -> Plan:
    found = (find(name) for name in methods)
    chosen = tuple(
        m.with_settings({"lawa.k": 3} if "lawa.k" in m.settings.keys() - m.changed else {})
        for m in found
    )
    return Plan(load("digits"), chosen, tuple(range(seeds)), Budget(budget), 0.05, 5)


PROFILE = profile_of([COSTS], plan_of().signature)


def results(comparison: Comparison) -> str:
    """All that a table is made of, to the last digit."""
    return json.dumps([asdict(run) for run in comparison.runs], indent=1)


def say(event: Event) -> None:
    if isinstance(event, Started):
        print("started", *event.shares, event.seed, file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        # As on a disk that is full: writing fails beyond so many bytes of a file.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    with Lock(folder):
        plan = plan_of()
        kept = budget_folder(folder, plan)
        done = resume(plan, PROFILE, kept, say, checkpoint_seconds=0.05)
    print(results(done))
