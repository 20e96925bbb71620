"""On an idle reference machine, RST and measured time of what was charged agree within 3%.

    python benchmarks/rst_against_time.py [--runs 5] [--budget 6s] [--calibration-seconds 40]
        [--workloads digits pydocs] [--quick] [--json FILE]

For each workload: train all methods that share the constant rate, in fresh processes, and compare
the reference seconds charged with the seconds that the same work took. Evaluation is in neither.
What is charged is on the scale of the calibration's own mixed loop, whatever its closure; so what
is left is what a training does and no operation has, and what differs between processes.
Trainings take turns with the processes of the calibration, so that both see the same machine: where
it is a virtual one, its speed drifts by more than 3% within minutes, which is no error of RST. One
thread, so that one core is left for all others. Run it on a quiet machine: the median over the runs
may be off by no more than 3%. A profile that was disturbed all the same is used, and said to be.
"""

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from importlib import import_module

import torch
from rich.progress import Progress
from rows import Limit, Row, finish, parser, spread

from baselines.comparison import Plan
from baselines.methods import Settings, find
from baselines.training import train
from timing import Account, Budget, CalibrationError, calibrate_in_processes, parse_seconds
from timing.flags import LEAST_PROCESSES

FOLLOWING = ("constant", "ema", "swa", "lawa")
EVALUATIONS = 10
OPERATIONS = (
    *("load_data", "train_step", "collect", "average", "ema_update", "swa_update"),
    *("statistics", "evaluate"),
)
# Charged to each method, and run once for all of them; and what is off the clock.
SHARED = ("load_data", "train_step", "evaluate")
# About a step on one core: it says how many of them a training has, and nothing else.
STEP_SECONDS = {"digits": 0.0015, "pydocs": 0.013}
LARGEST_DIFFERENCE = Limit(3.0)
# Above this the machine is not idle, and the comparison says little.
QUIET_CORES = 0.1


def plan_of(workload_name, budget_seconds, seed):
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    settings = Settings(workload.learning_rate, k=5, every="auto")
    return Plan(workload, FOLLOWING, (seed,), Budget(budget_seconds), settings, EVALUATIONS)


def child(workload_name, budget_seconds, seed):
    """Train once; print what ran and how long it took as JSON."""
    torch.set_num_threads(1)
    plan = plan_of(workload_name, budget_seconds, seed)
    trajectory = train(
        plan.workload,
        {name: find(name) for name in plan.methods},
        seed,
        plan.budget,
        dict.fromkeys(OPERATIONS, STEP_SECONDS[workload_name] / 50)
        | {"train_step": STEP_SECONDS[workload_name]},
        plan.settings,
        plan.evaluations,
        read_test=False,
    )
    failures = [run.failure for run in trajectory.runs if run.failure]
    if failures:
        sys.exit(failures[0])
    counts = Counter()
    for run in trajectory.runs:
        counts.update({name: times for name, times in run.counts.items() if name not in SHARED})
    steps = max(run.steps for run in trajectory.runs)
    result = {
        "counts": {**counts, "load_data": steps, "train_step": steps},
        "measured": trajectory.measured_seconds,
        "other_cores": trajectory.other_cores,
    }
    print(json.dumps(result))


def run_of(workload_name, budget_seconds, seed):
    """What a training in a fresh process says."""
    command = [sys.executable, __file__, "--child", workload_name, str(budget_seconds), str(seed)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def row_of(workload_name, options, notes):
    """How far RST is from measured time, either way, in percent."""
    results = []
    with Progress() as progress:
        bar = progress.add_task(workload_name, total=1.0)

        def after_a_process(fraction, said):
            progress.update(bar, completed=fraction, description=f"{workload_name}: {said}")
            if not said.startswith("discarded") and len(results) < options.runs:
                results.append(run_of(workload_name, options.budget, len(results)))

        profile = calibrate_in_processes(
            "baselines.reference:calibratable",
            {"workload": workload_name},
            seconds=options.calibration_seconds,
            force=True,
            processes=max(LEAST_PROCESSES, options.runs),
            on_progress=after_a_process,
        )
    notes += [f"Profile of {workload_name}: {flag}" for flag in profile.flags()]
    differences = []
    for number, result in enumerate(results, 1):
        account = Account(profile.seconds, "mlperf")
        for operation, times in result["counts"].items():
            account.charge(operation, times)
        differences.append(100 * (account.rst_seconds / result["measured"] - 1))
        notes.append(
            f"{workload_name}, run {number}: RST {account.rst_seconds:.3f} s, measured "
            f"{result['measured']:.3f} s, {differences[-1]:+.2f}%, others' cores "
            f"{result['other_cores']:.2f}{', not quiet' * (result['other_cores'] > QUIET_CORES)}."
        )
    median = statistics.median(differences)
    size = f"{workload_name}, closure {profile.closure:+.2%}"
    work, iqr = "RST over measured time, less one; either way", spread(differences)
    row = Row(work, size, len(differences), median, iqr, "%")
    return row.held_to(LARGEST_DIFFERENCE, abs(median))


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument(
        "--budget", type=parse_seconds, default=6.0, help="reference seconds of a run, as in 6s"
    )
    arguments.add_argument("--calibration-seconds", type=float, default=40.0, help="of a workload")
    arguments.add_argument("--workloads", nargs="+", default=["digits", "pydocs"])
    options = arguments.parse_args()
    if options.quick:
        options.runs, options.budget = 2, 0.5
        options.calibration_seconds = 5.0
    torch.set_num_threads(1)
    notes = []
    try:
        rows = [row_of(name, options, notes) for name in options.workloads]
    except CalibrationError as error:
        sys.exit(str(error))
    finish(rows, notes, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
