"""What keeping a comparison, and publishing it beside, costs its training.

    python benchmarks/tracking.py [--rounds 5] [--seconds 6] [--quick] [--json FILE]

The same comparison of the pydocs workload, kept in a folder and published to a store of its own,
and with nothing of the kind, alternately. The time that training spent appending to its logs, as a
share of the whole, is all that it waits for; the export of the models, once a method and off every
clock, is apart, for it does not grow with the training either. The ratio of both durations, round
by round, has the noise of the machine in it, and checkpoints. The processor time of the process
that publishes is not noticed where there is a core to spare. Starting and ending it are apart: they
do not grow with the training.
"""

import os
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from rows import Limit, Row, finish, parser

from baselines.experiment import comparison
from baselines.experiment.calibration import measure_profile
from baselines.experiment.comparison import compare
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, write_profile
from baselines.methods.names import find
from baselines.tracking.follow import Follower
from baselines.training import exported_model
from baselines.training.events import EventLog
from baselines.workloads import load
from timing import Budget

SHARE = Limit(1.0)


class Timed:
    """Calls a function and adds up the seconds."""

    def __init__(self, function):
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments):
        started = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


def cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=6.0, help="the budget of a run")
    options = arguments.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    if options.json is not None:
        options.json = options.json.resolve()
    torch.set_num_threads(1)
    workload = load("digits" if options.quick else "pydocs")
    plan = Plan(
        workload=workload,
        methods=tuple(map(find, ("constant", "lawa", "decayed"))),
        seeds=(0,),
        budget=Budget(options.seconds),
        learning_rate=workload.learning_rate,
    )
    profile = measure_profile(plan, lambda *_: None)
    shares, models, ratios, ends, sending = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        os.chdir(folder)
        # The store is made before, as it is there in all comparisons but the first.
        Path("first").mkdir()
        write_profile(Path("first"), profile)
        with Follower(Path("first")):
            pass
        for number in range(options.rounds):
            started = time.perf_counter()
            compare(plan, profile)
            without = time.perf_counter() - started
            before = cpu_seconds_of_children()
            root = Path(str(number))
            write_profile(root, profile)
            entered = time.perf_counter()
            export = Timed(exported_model.export_model)
            append = Timed(EventLog.append)
            with (
                Follower(root),
                mock.patch.object(comparison, "export_model", export),
                mock.patch.object(EventLog, "append", lambda *all: append(*all)),  # noqa: B023
            ):
                started = time.perf_counter()
                resume(plan, profile, budget_folder(root, plan), export_models=True)
                ended = time.perf_counter()
            ends.append(started - entered + time.perf_counter() - ended)
            sending.append(cpu_seconds_of_children() - before)
            models.append(export.seconds)
            trained = ended - started - models[-1]
            shares.append(append.seconds / trained)
            ratios.append(trained / without)
    size = f"{workload.name}, {options.seconds:g} s a run"
    rows = [
        Row.of("training waits for it", size, "%", [100 * s for s in shares], limit=SHARE),
        Row.of(f"export of {len(plan.methods)} models, once a comparison", size, "s", models),
        Row.of("duration with it, models left out, over without", size, "x", ratios),
        Row.of("start and end together, once a comparison", size, "s", ends),
        Row.of("the publisher's processor time, once a comparison", size, "s", sending),
    ]
    finish(rows, [], options)


if __name__ == "__main__":
    main()
