"""A comparison killed again and again ends with the very table of an undisturbed one.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--reference FILE] [--quick] [--json FILE]

`python -m baselines compare` is killed (SIGKILL) at random moments after it began to train, started
again by the same command, and so on; then it is let to its end. Nothing may be lost: every number
of every run is compared with those of an undisturbed comparison bit by bit, and what MLflow has of
both.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.progress import track
from rows import Limit, Row, finish, parser

NONE_DIFFERS = Limit(0)


def command_of(arguments, reference, budget):
    return [
        *(sys.executable, "-m", "baselines", "compare", "--workload", "digits", "--seeds", "2"),
        *("--budget", budget, "--reference", str(reference)),
        *arguments,
    ]


def start(command, folder):
    """The command in a session of its own, so that all its processes can be killed at once."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(folder):
    """Every number of every run, and what MLflow has of them."""
    from baselines.folder import read_comparison

    (root,) = (folder / "lawa-runs").iterdir()
    runs = {f"{run.method}, seed {run.seed}": asdict(run) for run in read_comparison(root).runs}
    return runs, recorded(folder)


def recorded(folder):
    """For each run in MLflow its status and all values of its metric; the name may come once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lawa-opt")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        name = run.info.run_name
        if name in found:
            name += " (again)"
        history = client.get_metric_history(run.info.run_id, "validation/metric")
        values = sorted((point.step, point.value) for point in history)
        found[name] = [run.info.status, values]
    return found


def differing(one, other):
    """How many entries are not the same in both."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def main():
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--reference", type=Path, help="a profile; measured first without one")
    arguments = options.parse_args()
    budget = "1s" if arguments.quick else "10s"
    kills = 2 if arguments.quick else arguments.kills
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / which for which in ("undisturbed", "killed")]
        for folder in folders:
            folder.mkdir()
        reference = arguments.reference and arguments.reference.resolve()
        if reference is None:
            first = [*command_of((), "", "1s")[:-2], "--methods", "constant"]
            subprocess.run(first, cwd=name, check=True, stdout=subprocess.DEVNULL)
            (reference,) = Path(name).glob("lawa-runs/*/reference.json")
        command = command_of((), reference, budget)
        began = time.perf_counter()
        out, _ = start(command, folders[0]).communicate()
        seconds = time.perf_counter() - began
        if not (folders[0] / "mlflow.db").exists():
            sys.exit(out)
        done = 0
        for _ in track(range(kills), "killing"):
            process = start(command, folders[1])
            time.sleep(moments.uniform(0.2, 1) * min(seconds, 15))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                done += 1
            process.communicate()
        last = start(command, folders[1]).communicate()[0]
        tables = [text[text.index("of RST each") :].split("To review")[0] for text in (out, last)]
        (runs, told), (runs_killed, told_killed) = map(results, folders)
    size = f"digits, {len(runs)} runs of {budget}, {done} kills"
    rows = [
        Row.of("runs whose numbers differ", size, "", [differing(runs, runs_killed)]),
        Row.of("runs that differ in MLflow", size, "", [differing(told, told_killed)]),
        Row.of("tables that differ", size, "", [int(tables[0] != tables[1])]),
    ]
    rows = [row.held_to(NONE_DIFFERS, row.median) for row in rows]
    finish(rows, [f"The undisturbed comparison took {seconds:.0f} s."], arguments)


if __name__ == "__main__":
    main()
