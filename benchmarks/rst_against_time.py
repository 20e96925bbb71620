"""On an idle reference machine, RST and measured time of what was charged agree within 3%.

    python benchmarks/rst_against_time.py [--processes 10] [--calibration-seconds 150]
        [--workloads digits pydocs] [--quick] [--json FILE]

For each workload: calibrate in fresh processes, and in each of them train all methods that share
the constant rate. Calibration and training take turns of a second, for as long as the calibration
takes. Then the reference seconds charged for the steps, by the profile of all processes together,
are compared with the seconds that they took in one process: a run. Evaluation is in neither, and
what the account itself takes is not in the seconds. There are more processes than the five that
a profile needs, for two trainings alike differ by 1 to 2%, by where in memory they happen to be.

A virtual machine is idle only while its host is. A neighbour there slows memory down by a few
percent for seconds or minutes, which no counter shows; so what is compared is measured in turns. If
the neighbour is on the other half of the core, all is up to twice as slow. The processor's pace
shows that; so it is looked at between any two steps, and the steps that count are those before and
after which it was free, as in a calibration. A neighbour that comes and goes within a step is not
seen; so the steps on either side of it must be free too. A run with less than a tenth of such steps
is left out. Where hardly any run was left undisturbed, all steps of all runs count. A profile that
was disturbed is used all the same; a process that it discards is a run like the others. All of this
is said. One thread, so that one core is left for all others. The median over the runs may be off by
no more than 3%.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from unittest import mock

import torch
from rich.progress import Progress
from rows import Limit, Row, finish, parser, spread

import baselines.experiment.calibration
import baselines.training.loop
import baselines.training.training
from baselines.methods.names import find
from baselines.training.method_run import MethodRun
from timing import Account, Budget, CalibrationError, calibrate_in_processes, profile_warnings
from timing.calibration import measure as calibration
from timing.calibration.cpu_probe import cpu_probe_seconds, drop_disturbed

METHODS = ("constant", "ema", "swa", "lawa")
OPERATIONS = (
    *("load_data", "train_step", "collect", "average", "ema_update", "swa_update"),
    *("statistics", "evaluate"),
)
# Charged to each method, and run once for all of them.
SHARED = ("load_data", "train_step")
# It says how many steps a budget has, and nothing else: more than are ever trained.
STEP_SECONDS = 0.01
MOST_STEPS, STEPS_AN_EVALUATION = 1_000_000, 200
LARGEST_DIFFERENCE = Limit(3.0)
TURN_SECONDS = 1.0
# Of the steps of a run that counts.
FEWEST_FREE = 0.1


class Turns:
    """Of two threads, one runs, until its turn is over."""

    def __init__(self):
        self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        self.begin = time.monotonic()

    def is_over(self):
        return time.monotonic() - self.begin > TURN_SECONDS

    def hand_over(self, me):
        self.waiting[1 - me].release()
        self.wait(me)

    def wait(self, me):
        self.waiting[me].acquire()
        self.begin = time.monotonic()


CALIBRATION, TRAINING = 0, 1


class Steps:
    """What each step of a training ran, how long it took, and the processor's probe meanwhile.

    A step ends where the next batch is asked for. What evaluation took is left out, and what the
    methods' books did, which is some 2 µs each.
    """

    def __init__(self, turns, file):
        self.turns, self.file = turns, file
        self.rows = []
        self.probe = None

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
                self.left_out += time.perf_counter() - begin

        return replace(workload, batches=batches, evaluate=evaluate)

    def method_run(self, *arguments):
        """A method on its way, looked at."""
        run = MethodRun(*arguments)
        step, after_step = run.step, run.averager.after_step

        def timed_step(loss):
            begin = time.perf_counter()
            step(loss)
            self.left_out += time.perf_counter() - begin

        def timed_after_step(spent):
            begin = time.perf_counter()
            added = after_step(spent)
            # It is charged, and all else in the step is not.
            self.left_out -= time.perf_counter() - begin
            return added

        run.step, run.averager.after_step = timed_step, timed_after_step
        return run

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
        now, before, self.probe = time.perf_counter(), self.probe, cpu_probe_seconds()
        if before is not None:
            counts = {name: times for name, times in self.counts.items() if name != "evaluate"}
            seconds = now - self.begin - self.left_out
            probes = (before, self.probe)
            self.rows.append((seconds, max(probes), counts | dict.fromkeys(SHARED, 1)))
        if self.turns.is_over():
            with self.file.open("a") as file:
                file.write(json.dumps(self.rows) + "\n")
            self.rows = []
            self.turns.hand_over(TRAINING)
            # The first step of a turn finds its memory in no cache.
            self.probe = None
        self.counts, self.left_out = Counter(), 0.0
        self.begin = time.perf_counter()


def calibration_target(workload, folder):
    """What is calibrated in a fresh process, which trains too whenever the calibration's turn ends.

    The steps of each turn are added to a file in the folder, as a line.
    """
    turns = Turns()

    def train():
        try:
            turns.wait(TRAINING)
            train_for_long(workload, Steps(turns, Path(folder, f"{os.getpid()}.json")))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        # The calibration would wait for its turn for ever.
        os._exit(1)

    threading.Thread(target=train, daemon=True).start()

    def look():
        if turns.is_over():
            turns.hand_over(CALIBRATION)
        return cpu_probe_seconds()

    # There it probes the processor between passes, off the clock.
    mock.patch.object(calibration, "cpu_probe_seconds", look).start()
    return baselines.experiment.calibration.calibration_target(workload)


def train_for_long(workload_name, steps):
    torch.set_num_threads(1)
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    budget = Budget(MOST_STEPS * STEP_SECONDS)
    mock.patch.object(baselines.training.training, "Account", steps.account).start()
    mock.patch.object(baselines.training.training, "MethodRun", steps.method_run).start()
    result = baselines.training.loop.train(
        steps.watch(workload),
        [find(name) for name in METHODS],
        0,
        budget,
        dict.fromkeys(OPERATIONS, STEP_SECONDS / 100) | {"train_step": STEP_SECONDS},
        workload.learning_rate,
        MOST_STEPS // STEPS_AN_EVALUATION,
        read_test=False,
    )
    print("the training ended:", [run.failure for run in result.runs], file=sys.stderr)


def difference(steps, costs):
    """RST of these steps over the seconds that they took, less one, in percent."""
    account = Account(costs, "mlperf")
    for _, _, counts in steps:
        for operation, times in counts.items():
            account.charge(operation, times)
    return 100 * (account.rst_seconds / sum(seconds for seconds, _, _ in steps) - 1)


def undisturbed_steps(steps, known_probe):
    """Those in the middle of three during which the processor was undisturbed."""
    threes = zip(steps, steps[1:], steps[2:], strict=False)
    samples = [(max(probe for _, probe, _ in three), three[1]) for three in threes]
    return drop_disturbed(samples, known_probe)


def row_of(workload_name, options, notes):
    """How far RST is from measured time, either way, in percent."""
    with Progress() as progress, tempfile.TemporaryDirectory() as folder:
        bar = progress.add_task(workload_name, total=1.0)
        profile = calibrate_in_processes(
            f"{__file__}:calibration_target",
            {"workload": workload_name, "folder": folder},
            seconds=options.calibration_seconds,
            force=True,
            processes=options.processes,
            on_progress=lambda fraction, said: progress.update(
                bar, completed=fraction, description=f"{workload_name}: {said:.60}"
            ),
        )
        files = sorted(Path(folder).iterdir(), key=lambda file: file.stat().st_mtime)
        turns = [map(json.loads, file.read_text().splitlines()) for file in files]
    runs = [list(chain.from_iterable(of_run)) for of_run in turns]
    notes += [f"Profile of {workload_name}: {warning}" for warning in profile_warnings(profile)]
    known_probe = min(process.cpu_probe_seconds for process in profile.processes)
    differences, over_all = [], []
    for number, steps in enumerate(runs, 1):
        # The first are warm-up, as in a calibration.
        steps = steps[10:]
        free = undisturbed_steps(steps, known_probe)
        over_all.append(difference(steps, profile.seconds))
        said = "left out, too few"
        if len(free) >= FEWEST_FREE * len(steps):
            differences.append(difference(free, profile.seconds))
            said = f"{differences[-1]:+.2f}%"
        notes.append(
            f"{workload_name}, run {number}: {said} over the {len(free)} of {len(steps)} steps "
            f"with a free processor, {over_all[-1]:+.2f}% over all."
        )
    size = f"{workload_name}, additivity error {profile.additivity_error:+.2%}"
    if len(differences) < 2:
        # As a calibration does, which takes all its passes then.
        differences, size = over_all, f"{size}, NEVER FREE FOR LONG: over all steps"
    median = statistics.median(differences)
    work, iqr = "RST over measured time, less one; either way", spread(differences)
    row = Row(work, size, len(differences), median, iqr, "%")
    return row.held_to(LARGEST_DIFFERENCE, abs(median))


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--processes", type=int, default=10)
    arguments.add_argument("--calibration-seconds", type=float, default=150.0, help="of a workload")
    arguments.add_argument("--workloads", nargs="+", default=["digits", "pydocs"])
    options = arguments.parse_args()
    if options.quick:
        options.processes, options.calibration_seconds, options.workloads = 2, 8.0, ["digits"]
    torch.set_num_threads(1)
    # The training's thread is to have memory of the same heap as the calibration's.
    os.environ["MALLOC_ARENA_MAX"] = "1"
    notes = []
    try:
        rows = [row_of(name, options, notes) for name in options.workloads]
    except CalibrationError as error:
        sys.exit(f"{error}\n{error.stderr}")
    finish(rows, notes, options)


if __name__ == "__main__":
    main()
