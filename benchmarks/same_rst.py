"""The same training run has the same RST, to the last digit, however long it takes.

    python benchmarks/same_rst.py [--workload digits] [--steps 1000] [--seed 0] [--quick]
        [--json FILE]

Each condition is a fresh process: one thread or two, alone or beside a process that keeps a core
busy, all on the same two cores. The reference costs are fixed; they are made up, and do not matter.
Losses may differ in their last digits between one thread and two, which add in another order; RST
may not differ at all: its every value at every evaluation is compared bit by bit. Wall time must
differ by half or more, for that is what makes it worth showing.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module

from rich.progress import track
from rows import Limit, Row, finish, parser

CONDITIONS = [(1, False), (2, False), (1, True), (2, True)]
# Their sums are rounded in nearly every addition, so an order that changes would show.
COSTS = {
    "load_data": 6.07e-5,
    "train_step": 1.0437e-3,
    "collect": 2.31e-5,
    "average": 7.13e-5,
    "ema_update": 4.77e-5,
    "swa_update": 4.19e-5,
    "statistics": 3.0907e-3,
    "evaluate": 1.7903e-3,
}
METHODS = ("constant", "ema", "swa", "lawa")
EVALUATIONS = 5
NONE_DIFFERS = Limit(0)
MANY_TIMES_SLOWER = Limit(1.5, at_least=True)


def child(threads, workload_name, steps, seed):
    """Train once, and print what came of it as JSON."""
    import torch

    from baselines.methods.names import find
    from baselines.training.loop import train
    from timing import Budget, Stopwatch

    torch.set_num_threads(threads)
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    watch = Stopwatch()
    with watch:
        trained = train(
            workload,
            [find(name) for name in METHODS],
            seed,
            Budget(steps * COSTS["train_step"]),
            COSTS,
            workload.learning_rate,
            EVALUATIONS,
        )
    result = {
        "failures": [run.failure for run in trained.runs if run.failure],
        "books": [
            [run.method, point.step, point.rst_seconds.hex()]
            for run in trained.runs
            for point in run.points
        ],
        "steps": max(run.steps for run in trained.runs),
        "rst_seconds": trained.rst_seconds,
        "final": trained.runs[-1].points[-1].value,
        "wall_seconds": watch.wall_seconds,
        "other_cores": watch.other_cores,
    }
    print(json.dumps(result))


@contextmanager
def busy_process(core):
    """A process that keeps a core busy until the end of the block."""
    code = "print('ready', flush=True)\nwhile True: pass"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            os.sched_setaffinity(process.pid, {core})
            process.stdout.readline()
            yield
        finally:
            process.kill()


def measure(threads, beside_busy, core, arguments):
    with ExitStack() as stack:
        if beside_busy:
            stack.enter_context(busy_process(core))
        command = [sys.executable, __file__, "--child", str(threads)]
        command += [arguments.workload, str(arguments.steps), str(arguments.seed)]
        # No setting of the shell's may keep the threads from being what they are said to be.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("OMP_WAIT_POLICY", None)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--workload", choices=("digits", "pydocs"), default="digits")
    arguments.add_argument("--steps", type=int, default=1000, help="that the budget pays for")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    conditions = CONDITIONS
    if options.quick:
        # Two threads take long beside a busy process.
        options.steps, conditions = 50, CONDITIONS[::2]
    cores = sorted(os.sched_getaffinity(0))[-2:]
    if len(cores) < 2:
        sys.exit("two threads need two cores, and this process may use one only")
    os.sched_setaffinity(0, cores)

    results = {
        condition: measure(*condition, cores[0], options)
        for condition in track(conditions, "each condition")
    }
    failures = [failure for result in results.values() for failure in result["failures"]]
    if failures:
        sys.exit(f"a run ended before its budget: {failures[0]}")

    first, *others = results.values()
    if any(len(result["books"]) != len(first["books"]) for result in others):
        sys.exit("the conditions do not have the same evaluations")
    differing = sum(
        any(value != other["books"][index] for other in others)
        for index, value in enumerate(first["books"])
    )
    walls = [result["wall_seconds"] for result in results.values()]
    size = f"{options.workload}, {first['steps']:,} steps, {', '.join(METHODS)}"
    compared = f"values of RST that differ, of {len(first['books'])} under {len(results)} loads"
    rows = [
        Row.of(compared, size, "", [differing], limit=NONE_DIFFERS),
        Row.of(
            "wall time, slowest over fastest",
            size,
            "x",
            [max(walls) / min(walls)],
            limit=MANY_TIMES_SLOWER,
        ),
    ]
    notes = [
        f"{threads} thread(s), beside {'a busy process' if beside_busy else 'nothing'}: RST "
        f"{result['rst_seconds']!r} s, wall time {result['wall_seconds']:.2f} s, final loss of "
        f"LAWA {result['final']!r}, others' cores {result['other_cores']:.2f}."
        for (threads, beside_busy), result in results.items()
    ]
    finish(rows, notes, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
