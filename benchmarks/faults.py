"""Whatever goes wrong, nothing is lost and nothing is wrong without a word: the counts of it.

    python benchmarks/faults.py [PART...] [--kills 20] [--seed 0] [--reference FILE] [--quick]
        [--json FILE]

A part is a function that does one kind of harm again and again, and gives a row for each count;
every count must be 0.

kills: `python -m baselines compare`, or one of the processes that train for it with `--jobs 2`, is
killed (SIGKILL) at random moments. The same command is given again until it ends, and every number
of every run is then compared with those of an undisturbed comparison bit by bit, as are the table
and what MLflow has of both. A command that is not itself killed ends with 0, or with 1 and a line.

interrupts: signals whose handlers raise come at random moments of `with opt.averaged()` and of
`eval()` and `train()`. The live weights must be in the model then, or, between the two calls, the
average or the live weights.

state_dicts: state dicts of LAWA are changed at random, as tests/lawa_opt/test_load_or_refuse.py
does. Each is refused by a ValueError with nothing changed, or loaded whole.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import psutil
from lawa_faults import interrupts, state_dicts
from rows import finish, none, parser

# What is killed, in turn, and with which options the comparison is made.
VICTIMS = {
    "command": (),
    "command with --jobs 2": ("--jobs", "2"),
    "process of --jobs 2": ("--jobs", "2"),
}
METRICS = ("validation/metric", "final/metric", "final/test", "work/rst_seconds", "work/steps")


def kills(arguments, folder):
    """Kill a comparison, or one of its trainings, again and again."""
    budget, count = ("1s", 1) if arguments.quick else ("20s", arguments.kills)
    moments = random.Random(arguments.seed)
    command = command_of(arguments.reference or measured(folder), budget)
    began = time.perf_counter()
    undisturbed = ended(start(command, folder / "undisturbed"))
    seconds = time.perf_counter() - began
    if undisturbed.returncode:
        sys.exit(undisturbed.stderr)
    expected = found_in(folder / "undisturbed", undisturbed)
    killed, wrong, compared = Counter(), Counter(), 0

    def end(victim, place):
        """Give the command until it ends, and compare what it came to."""
        nonlocal compared
        done = ended(start([*command, *VICTIMS[victim]], place))
        wrong["ends"] += done.returncode != 0 or bool(done.stderr)
        for what, one in found_in(place, done).items():
            wrong[what] += differing(one, expected[what])
        compared += 1
        shutil.rmtree(place)

    # Some come too late: what was to be killed had ended.
    for victim in itertools.islice(itertools.cycle(VICTIMS), 3 * count):
        if killed.total() == count:
            break
        print(f"kill {killed.total() + 1} of {count}: of the {victim}", file=sys.stderr)
        place = folder / victim.replace(" ", "-")
        process = start([*command, *VICTIMS[victim]], place)
        if victim.startswith("command"):
            time.sleep(moments.uniform(0.2, 1) * min(seconds, 15))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed[victim] += 1
            process.communicate()
        else:
            killed[victim] += kill_a_training(process, moments)
            done = ended(process)
            one_line = done.returncode == 1 and done.stderr.count("\n") == 1
            wrong["ends"] += not (one_line or (done.returncode, done.stderr) == (0, ""))
            wrong["ends"] += "of RST each" not in done.stdout
        if process.returncode == 0:
            # There is nothing left of it to be killed.
            end(victim, place)
    for victim in VICTIMS:
        place = folder / victim.replace(" ", "-")
        if place.exists():
            end(victim, place)
    size = f"digits, {budget} a run, {killed.total()} kills"
    rows = [
        none("runs whose numbers differ", size, wrong["runs"]),
        none("runs that differ in MLflow", size, wrong["told"]),
        none("tables that differ", size, wrong["table"]),
        none("commands that ended otherwise than with 0, or 1 and a line", size, wrong["ends"]),
    ]
    by_victim = ", ".join(f"{times} of the {victim}" for victim, times in killed.items())
    return rows, [
        f"Killed: {by_victim}. {compared} comparisons were gone on with to their ends.",
        f"The undisturbed comparison took {seconds:.0f} s.",
    ]


def command_of(reference, budget):
    return [
        *(sys.executable, "-m", "baselines", "compare", "--workload", "digits", "--seeds", "2"),
        *("--budget", budget, "--reference", str(reference)),
    ]


def measured(folder):
    """A profile of this machine, as a comparison without one measures it."""
    command = [*command_of("", "1s")[:-2], "--methods", "constant"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (reference,) = folder.glob("lawa-runs/*/reference.json")
    return reference


def start(command, folder):
    """The command in a session of its own, so that all its processes can be killed at once."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process):
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_a_training(command, moments):
    """Kill one of the command's trainings at a random moment of its life; whether one was."""
    # The first moments of a process are imports.
    waits = moments.uniform(0, 10)
    while command.poll() is None:
        try:
            trainings = [
                child
                # They are forked from one that has imported what they need.
                for server in psutil.Process(command.pid).children()
                if "forkserver" in " ".join(server.cmdline())
                for child in server.children()
                if time.time() - child.create_time() > waits
            ]
            if trainings:
                moments.choice(trainings).kill()
                return True
        except psutil.Error:
            pass
        time.sleep(0.05)
    return False


def found_in(folder, done):
    """Every number of every run, what MLflow has of them, and the table."""
    from baselines.experiment.kept import read_comparison

    (root,) = (folder / "lawa-runs").iterdir()
    runs = {f"{run.method}, seed {run.seed}": asdict(run) for run in read_comparison(root).runs}
    table = done.stdout[done.stdout.index("of RST each") :].split("Published to")[0]
    return {"runs": runs, "told": recorded(folder), "table": {"": table}}


def recorded(folder):
    """For each run in MLflow its status and all values of its metrics; the name may come once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lawa-opt")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        name = run.info.run_name
        if name in found:
            name += " (again)"
        histories = [client.get_metric_history(run.info.run_id, metric) for metric in METRICS]
        values = [sorted((point.step, point.value) for point in history) for history in histories]
        found[name] = [run.info.status, values]
    return found


def differing(one, other):
    """How many entries are not the same in both."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


PARTS = (interrupts, state_dicts, kills)


def main():
    options = parser(__doc__)
    names = [part.__name__ for part in PARTS]
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}; or all")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--reference", type=Path, help="a profile; measured first without one")
    arguments = options.parse_args()
    if unknown := set(arguments.parts) - set(names):
        options.error(f"no part is called {', '.join(sorted(unknown))}: there are {names}")
    arguments.reference = arguments.reference and arguments.reference.resolve()
    rows, notes = [], []
    for part in PARTS:
        if part.__name__ in (arguments.parts or names):
            with tempfile.TemporaryDirectory() as name:
                found = part(arguments, Path(name))
            rows += found[0]
            notes += found[1]
    finish(rows, notes, arguments)


if __name__ == "__main__":
    main()
