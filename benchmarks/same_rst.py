"""The same training run has the same RST, to the last digit, however long it takes.

    python benchmarks/same_rst.py [--workload digits] [--steps 1000] [--seed 0]

Each condition is a fresh process: one thread or two, alone or beside a process that keeps a core
busy, all on the same two cores. The reference costs are fixed; they are made up, and do not matter.
Losses may differ in their last digits between one thread and two, which add in another order; RST
may not differ at all: its every value at every evaluation is compared bit by bit. Exits with 1 if
they differ, or if wall time did not differ by half or more, which is what makes it worth showing.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module

from rich.console import Console
from rich.table import Table

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
MANY_TIMES_SLOWER = 1.5


def child(threads, workload_name, steps, seed):
    """Train once, and print what came of it as JSON."""
    import torch

    from baselines import methods, training
    from timing import Budget, Stopwatch

    torch.set_num_threads(threads)
    workload = import_module(f"baselines.workloads.{workload_name}").load()
    watch = Stopwatch()
    with watch:
        trajectory = training.train(
            workload,
            {name: methods.METHODS[name] for name in METHODS},
            seed,
            Budget(steps * COSTS["train_step"]),
            COSTS,
            methods.Settings(workload.learning_rate, k=5, every="auto"),
            EVALUATIONS,
        )
    result = {
        "failures": [run.failure for run in trajectory.runs if run.failure],
        "books": [
            [run.method, point.step, point.rst_seconds.hex()]
            for run in trajectory.runs
            for point in run.points
        ],
        "steps": max(run.steps for run in trajectory.runs),
        "rst_seconds": trajectory.rst_seconds,
        "final": trajectory.runs[-1].points[-1].value,
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=("digits", "pydocs"), default="digits")
    parser.add_argument("--steps", type=int, default=1000, help="that the budget pays for")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=120)
    cores = sorted(os.sched_getaffinity(0))[-2:]
    if len(cores) < 2:
        sys.exit("two threads need two cores, and this process may use one only")
    os.sched_setaffinity(0, cores)

    results = {}
    for threads, beside_busy in CONDITIONS:
        with console.status(f"threads: {threads}, {'beside a busy process' * beside_busy}"):
            result = measure(threads, beside_busy, cores[0], arguments)
        results[threads, beside_busy] = result

    fastest = min(result["wall_seconds"] for result in results.values())
    table = Table(title=f"{arguments.workload}: {', '.join(METHODS)} on one training")
    for column in ("threads", "beside", "steps", "RST, s", "wall, s", "ratio", "others' cores"):
        table.add_column(column, justify="left" if column == "beside" else "right", no_wrap=True)
    table.add_column("final loss of LAWA", justify="right", no_wrap=True)
    for (threads, beside_busy), result in results.items():
        table.add_row(
            str(threads),
            "a busy process" if beside_busy else "nothing",
            str(result["steps"]),
            repr(result["rst_seconds"]),
            f"{result['wall_seconds']:.2f}",
            f"{result['wall_seconds'] / fastest:.2f}",
            f"{result['other_cores']:.2f}",
            repr(result["final"]),
        )
    console.print(table)

    failures = [failure for result in results.values() for failure in result["failures"]]
    books = {json.dumps([result["books"], result["rst_seconds"]]) for result in results.values()}
    slowest = max(result["wall_seconds"] for result in results.values()) / fastest
    values = len(next(iter(results.values()))["books"])
    if failures:
        sys.exit(f"a run ended before its budget: {failures[0]}")
    if len(books) > 1:
        sys.exit("RST DIFFERS between the conditions")
    console.print(
        f"All {values} values of RST (each evaluation of each method) are the same to the last bit "
        f"under every condition; wall time differs {slowest:.2f} times."
    )
    if slowest < MANY_TIMES_SLOWER:
        sys.exit(f"wall time differs by less than {MANY_TIMES_SLOWER - 1:.0%}: this shows little")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
