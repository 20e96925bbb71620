"""On an idle reference machine, RST and measured time of what was charged agree within 3%.

    python benchmarks/rst_against_time.py [--runs 5] [--steps 1000] [--calibration-seconds 40]
        [--workloads digits pydocs] [--quick] [--json FILE]

For each workload: train all methods that share the constant rate, in fresh processes, and compare
the reference seconds charged with the seconds that the same work took. Evaluation is in neither.
A virtual machine is idle only while its host is: a neighbour on the other half of a core makes all
of it up to twice as slow, and no counter shows it. So the processor's pace is looked at between any
two steps, training waits there until it is free, a minute a run at most, and the steps that count
are those before and after which it was, as in a calibration. A neighbour that comes and goes within
a step is not seen; so the steps on either side of it must be free too. A run with less than
a tenth of such steps is left out, and another one run for it, as many again at most. A profile that
was disturbed is used all the same. Where hardly any run was left undisturbed, all steps of all runs
count. All of this is said. Trainings take turns with the processes of the calibration. One thread,
so that one core is left for all others. The median over the runs may be off by no more than 3%.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib import import_module

import torch
from rich.progress import Progress
from rows import FREE_PROCESSOR, FreeProcessor, Limit, Row, finish, parser, spread

import baselines.training
from baselines.comparison import Plan
from baselines.methods import Settings, find
from timing import Account, Budget, CalibrationError, calibrate_in_processes
from timing.flags import LEAST_PROCESSES
from timing.pace import is_slowed, own_pace

FOLLOWING = ("constant", "ema", "swa", "lawa")
EVALUATIONS = 10
OPERATIONS = (
    *("load_data", "train_step", "collect", "average", "ema_update", "swa_update"),
    *("statistics", "evaluate"),
)
# Charged to each method, and run once for all of them; and what is off the clock.
SHARED = ("load_data", "train_step")
# It says how many steps a budget has, and nothing else.
STEP_SECONDS = 0.01
LARGEST_DIFFERENCE = Limit(3.0)
WAITING_SECONDS = 60.0
# Of the steps of a run that counts.
FEWEST_FREE = 0.1
MOST_RUNS = 2


def plan_of(workload_name, steps, seed):
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    settings = Settings(workload.learning_rate, k=5, every="auto")
    budget = Budget(steps * STEP_SECONDS)
    return Plan(workload, FOLLOWING, (seed,), budget, settings, EVALUATIONS)


class Steps:
    """What each step of a training ran, how long it took, and the pace of the processor meanwhile.

    A step ends where the next batch is asked for; what evaluation took is left out.
    """

    def __init__(self, known_pace):
        self.rows = []
        self.processor = FreeProcessor(WAITING_SECONDS)
        self.processor.own = min(known_pace, self.processor.own)
        self.pace = None

    def watch(self, workload):
        """The same workload, looked at."""

        def batches(seed, start=0):
            stream = workload.batches(seed, start)
            while True:
                self.end_step()
                yield next(stream)

        def evaluate(model):
            begin = time.perf_counter()
            try:
                return workload.evaluate(model)
            finally:
                self.evaluation += time.perf_counter() - begin

        return replace(workload, batches=batches, evaluate=evaluate)

    def account(self, *arguments):
        """An account that tells what it charges."""
        account = Account(*arguments)
        charge = account.charge

        def told(operation, times=1):
            charge(operation, times)
            self.counts[operation] += times

        account.charge = told
        return account

    def end_step(self):
        now, before, pace = time.perf_counter(), self.pace, self.processor.look()
        if before is not None:
            counts = {name: times for name, times in self.counts.items() if name != "evaluate"}
            seconds = now - self.begin - self.evaluation
            paces = (before, pace)
            self.rows.append((seconds, max(paces), counts | dict.fromkeys(SHARED, 1)))
        self.pace, self.counts, self.evaluation = self.processor.wait(pace), Counter(), 0.0
        self.begin = time.perf_counter()


def child(workload_name, most_steps, seed, known_pace):
    """Train once; print what ran and how long it took as JSON."""
    torch.set_num_threads(1)
    plan = plan_of(workload_name, most_steps, seed)
    steps = Steps(known_pace)
    baselines.training.Account = steps.account
    trajectory = baselines.training.train(
        steps.watch(plan.workload),
        {name: find(name) for name in plan.methods},
        seed,
        plan.budget,
        dict.fromkeys(OPERATIONS, STEP_SECONDS / 100) | {"train_step": STEP_SECONDS},
        plan.settings,
        plan.evaluations,
        read_test=False,
    )
    failures = [run.failure for run in trajectory.runs if run.failure]
    if failures:
        sys.exit(failures[0])
    # The first steps are warm-up, as in a calibration.
    print(json.dumps({"steps": steps.rows[10:], "other_cores": trajectory.other_cores}))


def run_of(workload_name, steps, seed):
    """What a training in a fresh process says."""
    # It may begin on a slowed processor, and learn from itself what a free one is too late.
    for _ in range(100):
        FREE_PROCESSOR.look()
    known_pace = str(FREE_PROCESSOR.own)
    arguments = [workload_name, str(steps), str(seed), known_pace]
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def difference(steps, costs):
    """RST of these steps over the seconds that they took, less one, in percent."""
    account = Account(costs, "mlperf")
    for _, _, counts in steps:
        for operation, times in counts.items():
            account.charge(operation, times)
    return 100 * (account.rst_seconds / sum(seconds for seconds, _, _ in steps) - 1)


def free_steps(steps, pace):
    """Those in the middle of three during which the processor was free, as far as is known."""
    own = min(pace, own_pace([step_pace for _, step_pace, _ in steps]))
    slowed = [is_slowed(step_pace, own) for _, step_pace, _ in steps]
    return [steps[i] for i in range(1, len(steps) - 1) if not any(slowed[i - 1 : i + 2])]


def row_of(workload_name, options, notes):
    """How far RST is from measured time, either way, in percent."""
    results = []
    with Progress() as progress:
        bar = progress.add_task(workload_name, total=1.0)

        def after_a_process(fraction, said):
            progress.update(bar, completed=fraction, description=f"{workload_name}: {said:.60}")
            if not said.startswith("discarded") and len(results) < options.runs:
                results.append(run_of(workload_name, options.steps, len(results)))

        profile = calibrate_in_processes(
            "baselines.reference:calibratable",
            {"workload": workload_name},
            seconds=options.calibration_seconds,
            force=True,
            processes=max(LEAST_PROCESSES, options.runs),
            on_progress=after_a_process,
        )
    notes += [f"Profile of {workload_name}: {flag}" for flag in profile.flags()]
    pace = min(process.pace_seconds for process in profile.processes)
    differences, over_all = [], []
    for number in range(1, MOST_RUNS * options.runs + 1):
        if number > len(results):
            if len(differences) >= options.runs:
                break
            results.append(run_of(workload_name, options.steps, len(results)))
        result = results[number - 1]
        steps = result["steps"]
        free = free_steps(steps, pace)
        over_all.append(difference(steps, profile.seconds))
        said = "left out, too few"
        if len(free) >= FEWEST_FREE * len(steps):
            differences.append(difference(free, profile.seconds))
            said = f"{differences[-1]:+.2f}%"
        notes.append(
            f"{workload_name}, run {number}: {said} over the {len(free)} of {len(steps)} steps "
            f"with a free processor, {over_all[-1]:+.2f}% over all; others' cores "
            f"{result['other_cores']:.2f}."
        )
    size = f"{workload_name}, closure {profile.closure:+.2%}"
    if len(differences) < 2:
        # As a calibration does, which takes all its passes then.
        differences, size = over_all, f"{size}, NEVER FREE FOR LONG: over all steps"
    median = statistics.median(differences)
    work, iqr = "RST over measured time, less one; either way", spread(differences)
    row = Row(work, size, len(differences), median, iqr, "%")
    return row.held_to(LARGEST_DIFFERENCE, abs(median))


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=1000, help="of a training, at most")
    arguments.add_argument("--calibration-seconds", type=float, default=40.0, help="of a workload")
    arguments.add_argument("--workloads", nargs="+", default=["digits", "pydocs"])
    options = arguments.parse_args()
    if options.quick:
        options.runs, options.steps = 2, 100
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
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
