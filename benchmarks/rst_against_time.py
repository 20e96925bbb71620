"""On an idle reference machine, RST and measured time of what was charged agree within 3%.

    python benchmarks/rst_against_time.py [--runs 5] [--budget 6s] [--calibration-seconds 40]
        [--workloads digits pydocs] [--force]

For each workload: calibrate here, then train all methods that share the constant rate, in fresh
processes one after another, and compare the reference seconds charged with the seconds that the
same work took. Evaluation is in neither. One thread, so that one core is left for all others. Run
it on a quiet machine; exits with 1 if the median over the runs is off by more than 3%.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib import import_module

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from baselines.comparison import Plan
from baselines.methods import METHODS, Settings
from baselines.training import train
from timing import Budget, CalibrationError, calibrate_in_processes, parse_seconds

FOLLOWING = ("constant", "ema", "swa", "lawa")
EVALUATIONS = 10
LARGEST_DIFFERENCE = 0.03
# Above this the machine is not idle, and the comparison says little.
QUIET_CORES = 0.1


def plan_of(workload_name, budget_seconds, seed):
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    settings = Settings(workload.learning_rate, k=5, every="auto")
    return Plan(workload, FOLLOWING, (seed,), Budget(budget_seconds), settings, EVALUATIONS)


def child(workload_name, budget_seconds, seed):
    """Train once under the costs given on standard input; print both clocks as JSON."""
    torch.set_num_threads(1)
    plan = plan_of(workload_name, budget_seconds, seed)
    trajectory = train(
        plan.workload,
        {name: METHODS[name] for name in plan.methods},
        seed,
        plan.budget,
        json.load(sys.stdin),
        plan.settings,
        plan.evaluations,
    )
    failures = [run.failure for run in trajectory.runs if run.failure]
    if failures:
        sys.exit(failures[0])
    result = {
        "rst": trajectory.rst_seconds,
        "measured": trajectory.measured_seconds,
        "other_cores": trajectory.other_cores,
    }
    print(json.dumps(result))


def runs_of(workload_name, runs, budget_seconds, costs):
    for seed in range(runs):
        command = [sys.executable, __file__, "--child"]
        command += [workload_name, str(budget_seconds), str(seed)]
        done = subprocess.run(
            command,
            input=json.dumps(costs),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        yield json.loads(done.stdout.splitlines()[-1])


def compare(console, workload_name, arguments):
    """Print a workload's table; the median difference of RST from measured time, as a share."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"calibrating {workload_name}", total=1.0)
        profile = calibrate_in_processes(
            "baselines.reference:calibratable",
            {"workload": workload_name},
            seconds=arguments.calibration_seconds,
            force=arguments.force,
            on_progress=lambda fraction, said: progress.update(
                bar, completed=fraction, description=f"calibrating {workload_name}: {said}"
            ),
        )
    for flag in profile.flags():
        console.print(f"profile of {workload_name}: {flag}", markup=False, highlight=False)
    table = Table(title=f"{workload_name}, closure of the profile {profile.closure:+.2%}")
    for column in ("run", "RST, s", "measured, s", "difference", "others' cores"):
        table.add_column(column, justify="right")
    differences = []
    results = runs_of(workload_name, arguments.runs, arguments.budget, profile.seconds)
    for number, result in enumerate(results, 1):
        differences.append(result["rst"] / result["measured"] - 1)
        table.add_row(
            str(number),
            f"{result['rst']:.3f}",
            f"{result['measured']:.3f}",
            f"{differences[-1]:+.2%}",
            f"{result['other_cores']:.2f}" + " !" * (result["other_cores"] > QUIET_CORES),
        )
    median = statistics.median(differences)
    table.add_section()
    table.add_row("median", "", "", f"{median:+.2%}", "")
    console.print(table)
    return median


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--budget", type=parse_seconds, default=6.0, help="reference seconds of a run, as in 6s"
    )
    parser.add_argument("--calibration-seconds", type=float, default=40.0, help="of a workload")
    parser.add_argument("--workloads", nargs="+", default=["digits", "pydocs"])
    parser.add_argument("--force", action="store_true", help="calibrate beside other processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    try:
        medians = {name: compare(console, name, arguments) for name in arguments.workloads}
    except CalibrationError as error:
        sys.exit(str(error))
    off = [name for name, median in medians.items() if abs(median) > LARGEST_DIFFERENCE]
    if off:
        sys.exit(
            f"off by more than {LARGEST_DIFFERENCE:.0%}: {', '.join(off)}; was the machine idle? "
            "(a ! marks runs beside others)"
        )
    console.print(f"RST and measured time agree within {LARGEST_DIFFERENCE:.0%}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
