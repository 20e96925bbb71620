"""Whatever a command is given, it ends in one line that helps: never in a traceback."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import os
import pickle
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import baselines.cli.app
import timing.cli.app
from baselines.analysis import plots
from baselines.experiment.executor import run_parallel
from baselines.experiment.plan import Plan
from baselines.experiment.processes import Processes
from baselines.experiment.store import write_profile
from baselines.methods.names import find
from baselines.workloads import load
from tests.support import warm_python
from tests.support.comparisons import CURVES, comparison, kept
from tests.support.kept_comparison import PROFILE as OF_DIGITS
from tests.support.profiles import ROWS, profile, profile_of
from tests.support.trainings import COSTS
from tests.support.user_files import CHANGED, EXAMPLE, SCHEDULE, averager
from timing import Budget
from timing.cli import commandline

ON_DIGITS = "--workload digits --seeds 1 --budget 1s --reference of-digits.json"
APPS = {"timing": timing.cli.app.app, "baselines": baselines.cli.app.app}
LONG, HUGE = "1" * 5000, "9" * 400
DEEP = "[" * 20_000


def change_of(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a place in a document, and at all places that it is checked against."""

    def change(document: dict[str, Any]) -> None:
        inside: Any = document
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value

    return change


def everywhere(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value in this field of every cost."""

    def change(document: dict[str, Any]) -> None:
        for row in document["processes"]:
            for cost in row["costs"].values():
                cost[field] = value

    return change


def called(name: str) -> Callable[[dict[str, Any]], None]:
    """Calls an operation so."""

    def change(document: dict[str, Any]) -> None:
        document["every"][name] = document["every"].pop("evaluate")
        for row in document["processes"]:
            row["costs"][name] = row["costs"].pop("evaluate")

    return change


PROFILES = {
    "every": change_of("every", "evaluate", value=10**400),
    "loop": change_of("every", value={"train_step": 999_999_937, "evaluate": 999_999_929}),
    "samples": everywhere("samples", 10**400),
    "flops": change_of("workload", "flops_per_step", value=10**400),
    "inf": change_of("workload", "batch", value=float("inf")),
    "memory": change_of("machine", "memory_bytes", value=10**400),
    "dear": everywhere("median_seconds", 1e308),
    "cheap": everywhere("median_seconds", 1e-320),
    "additivity": change_of("processes", 0, "additivity_error", value=1e308),
    "version": change_of("version", value=10**4000),
    "nested": change_of("workload", "batch", value=json.loads("[" * 900 + "]" * 900)),
}
FILES = {
    "deep.json": DEEP,
    "digits.json": LONG,
    "binary.json": "\0\udcff",
    "empty.json": "",
    "null.json": "null",
    "leaves.py": "import sys\nsys.exit(0)",
    "raises.py": "raise BaseException('on purpose')",
    "recurses.py": "def load():\n    load()",
    "endless.py": SCHEDULE.format("self.factor(spent)"),
    "own.py": CHANGED.format(example=str(EXAMPLE), change=""),
    **{
        f"{name}.py": CHANGED.format(example=str(EXAMPLE), change=change)
        for name, change in {
            "metric": "metric='accuracy'",
            "model": "make_model=lambda: 1 / 0",
            "optimizer": "make_optimizer=lambda model, rate: model.nothing",
            "batches": "batches=lambda seed, start=0: 1 / 0",
            "loss": "loss=lambda model, batch: model(batch[1])",
            "evaluate": "evaluate=lambda model: exit(0)",
            "rate": "learning_rate=1e308 * 10",
        }.items()
    },
    "head.py": averager("""
    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        self.head = model.transformer.head
"""),
    "nothing.py": "",
    "old.py": "def method():\n    return None",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the table below names."""
    path = tmp_path_factory.mktemp("input")
    profile().write(path / "good.json")
    OF_DIGITS.write(path / "of-digits.json")
    for name, change in PROFILES.items():
        document = json.loads((path / "good.json").read_text())
        change(document)
        (path / f"{name}.json").write_text(json.dumps(document))
    for name, text in FILES.items():
        (path / name).write_text(text, errors="surrogateescape")
    (path / "truncated.json").write_text((path / "good.json").read_text()[:100])
    (path / "folder.json").mkdir()
    (path / "folder.png").mkdir()
    kept(comparison(CURVES), path / "kept")
    for name, text in (("comparison", DEEP), ("reference", "{"), ("events", f"{DEEP}\n")):
        damaged = kept(comparison(CURVES), path / f"damaged-{name}")
        next(damaged.rglob(f"{name}.json*")).write_text(text)
    return path


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ended(package: str, *arguments: str) -> tuple[int, str, str]:
    """Status, output and error output of a command, in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [package, *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            commandline.run(APPS[package])
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = argv


def assert_one_line(status: int, out: str, err: str) -> None:
    """One line of help and a status that says so, and no trace of how this program is made."""
    assert status in (1, 2), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert len(err) < 3000


CASES = {
    "timing": "Missing command",
    "timing nothing": "No such command",
    # Profiles.
    "timing show deep.json": "deep.json is no profile: it is nested too deeply",
    "timing show digits.json": "is not JSON",
    "timing show binary.json": "is not JSON",
    "timing show empty.json": "is not JSON",
    "timing show null.json": "no reference profile",
    "timing show folder.json": "Is a directory",
    "timing show ''": "Is a directory",
    f"timing show {'x' * 300}": "File name too long",
    "timing show /dev/zero": "longer than any profile",
    "timing show truncated.json": "truncated.json is not JSON",
    "timing show version.json": "no reference profile of version 3",
    "timing show nested.json": "nested.json: workload.batch",
    "timing show every.json": "every.evaluate: Input should be less than",
    "timing show loop.json": "every makes a loop of more than 1e+09 passes",
    "timing show samples.json": "costs.train_step.samples: Input should be less than",
    "timing show flops.json": "flops_per_step must be a number of up to 1e+30",
    "timing show inf.json": "workload",
    "timing show memory.json": "machine.memory_bytes: Input should be less than",
    "timing show additivity.json": "processes.0.additivity_error: Input should be less than",
    "timing show dear.json": "costs.train_step.median_seconds: Input should be less than",
    "timing compare dear.json cheap.json": "median_seconds: Input should be less than",
    "timing compare cheap.json good.json": "median_seconds: must be 1e-15 s or more",
    # Calibration, none of which may begin.
    "timing calibrate x --out o": "'x' is neither MODULE:FUNCTION nor FILE.py:FUNCTION",
    "timing calibrate nowhere.py:f --out o": "there is no file nowhere.py",
    "timing calibrate no_such_module.inside:f --out o": "there is no module no_such_module",
    "timing calibrate own.py:load --out o --limit inf": "limit_seconds must be at most 1e+09: inf",
    "timing calibrate own.py:load --out o --limit 1e308": "limit_seconds must be at most",
    "timing calibrate own.py:load --out o --limit nan": "limit_seconds must be above zero: nan",
    "timing calibrate own.py:load --out o --seconds inf": "seconds must be at most",
    "timing calibrate own.py:load --out o --threads 999999999999": "threads must be at most 1024",
    "timing calibrate own.py:load --out o --processes 999999999999": "processes must be at most",
    f"timing calibrate own.py:load --out o --argument a={DEEP}": "a is nested too deeply",
    "timing calibrate own.py:load --out own.py/o": "cannot be written",
    # Numbers.
    f"baselines compare --budget {HUGE}": "--budget: '9999",
    f"baselines compare --budget {LONG}s": "--budget: '1111",
    "baselines compare --budget 0.000000000000000000001s": "is no length of time from a femtosec",
    "baselines compare --budget ''": "--budget: '' is no length of time",
    "baselines compare --budget 1s,60s,1m": "--budget names a length of time twice",
    f"baselines compare --set lawa.every={LONG}": "--set: lawa.every cannot be '1111",
    "baselines compare --set lawa.every=9999999999": "--set: lawa.every: every must be auto, or fr",
    f"baselines compare --set lawa.k={LONG}": "--set: lawa.k cannot be '1111",
    f"baselines compare --set lawa.k={HUGE}": "--set: lawa.k: k must be from 1 to 10000: 9999",
    "baselines compare --set lawa.k=999999999999": "--set: lawa.k: k must be from 1 to 10000: 9",
    "baselines compare --set lawa.k=": "--set: lawa.k cannot be ''",
    "baselines compare --set ema.decay=nan": "--set: ema.decay: decay must be a finite number: nan",
    "baselines compare --set ema.decay=1e999": "--set: ema.decay: decay must be a finite number",
    "baselines compare --set ema.decay=1e308": "--set: ema.decay: decay must be between 0 and 1",
    f"baselines compare --methods 'lawa(k={LONG})'": "--methods: lawa.k cannot be '1111",
    f"baselines compare --methods 'decayed@{LONG}%'": "is no share of the budget in whole percent",
    "baselines compare --threads 999999999999": "--threads must be at most 1024: 999999999999",
    "baselines compare --threads 100000": "--threads must be at most 1024: 100000",
    "baselines compare --seeds 999999999999": "--seeds must be at most 10000: 999999999999",
    "baselines compare --seeds 200000000": "--seeds must be at most",
    "baselines compare --trials 999999999999 --dry-run": "--trials must be at most",
    "baselines compare --jobs 999999999999 --dry-run": "--jobs must be at most",
    "baselines compare --lr 1e308 --dry-run": "--lr must be a positive number: 1e+308, from 1e-36",
    "baselines compare --lr 1e-320 --dry-run": "--lr must be a positive number: 1e-320, from",
    "baselines compare --lr inf": "--lr must be a positive number: inf",
    f"baselines ablate --k {LONG}": "--k must be a whole number from 1",
    "baselines ablate --k 1,9999999": "--k must be at most",
    f"baselines ablate --every 5,{LONG}": "--every must be a number of steps",
    f"baselines ablate --every auto,{HUGE}": "--every must be a number of steps",
    "baselines ablate --jobs 999999999999 --dry-run": "--jobs must be at most",
    # Names and paths.
    "baselines compare --workload '[/red]'": "'[/red]' is none of",
    "baselines compare --methods '[/red].py'": "[/red].py: No such file",
    "baselines compare --methods ''": "'' is none of",
    "baselines compare --methods '[/red]'": "'[/red]' is none of",
    f"baselines compare --methods {'x' * 300}.py": "File name too long",
    "baselines compare --methods 'lawa([/red]=1)'": "lawa.[/red] is no setting: lawa has lawa.k, ",
    "baselines compare --methods 'lawa(k=[/red])'": "lawa.k cannot be '[/red]'",
    "baselines compare --methods lawa,constant+lawa": "--methods names a method twice",
    "baselines compare --set '[/red]'": "--set must be NAME=VALUE, such as lawa.k=10: '[/red]'",
    "baselines compare --set '[/red]=1'": "'[/red]' is no setting of the methods compared",
    "baselines compare --methods constant --set lawa.k=3": "'lawa.k' is no setting of the methods",
    "baselines compare --set lawa.k=3 --set lawa.k=4": "--set gives lawa.k twice: 3; 4",
    "baselines ablate --k 1,2,1": "--k or --every names a value twice: 1,2,1",
    "baselines ablate --policy none": "--policy: 'none' is none of",
    "baselines compare --workload folder.py": "No such file",
    "baselines compare --workload text --data folder.png": "folder.png",
    "baselines compare --workload text --data binary.json": "",
    f"baselines compare {ON_DIGITS} --methods constant --folder own.py": "own.py",
    f"baselines ablate {ON_DIGITS} --k 3 --every auto --folder own.py": "own.py",
    # Reference profiles.
    "baselines compare --reference truncated.json": "--reference: truncated.json is not JSON",
    "baselines compare --reference deep.json": "--reference: deep.json is no profile",
    "baselines ablate --reference samples.json": "--reference: samples.json: processes",
    "baselines compare --workload digits --reference good.json": "the reference profile was measur",
    # Clusters, whether they are used or not.
    "baselines compare --dry-run --cluster-option a=1": "--cluster-option is for --cluster",
    "baselines compare --dry-run --cluster-option a": "--cluster-option must be NAME=VALUE: 'a'",
    "baselines compare --dry-run --cluster pigeons": "refuses cluster 'pigeons'",
    "baselines compare --dry-run --cluster local --cluster-option hours=1": "hours",
    "baselines ablate --dry-run --cluster-option a=1": "--cluster-option is for --cluster",
    "baselines ablate --dry-run --cluster pigeons": "refuses cluster 'pigeons'",
    # Files of a user's own.
    "baselines compare --workload leaves.py": "leaves.py, line 2: it ends the process (sys.exit)",
    "baselines compare --methods leaves.py": "leaves.py, line 2: it ends the process (sys.exit)",
    "baselines compare --workload raises.py": "raises.py, line 1: BaseException: on purpose",
    "baselines compare --methods raises.py": "raises.py, line 1: BaseException: on purpose",
    "baselines compare --workload recurses.py": "recurses.py, line 2: RecursionError",
    "baselines compare --methods endless.py": "endless.py, line 8: RecursionError",
    "baselines compare --methods nothing.py": "nothing.py defines no name `part`, which must be a",
    "baselines compare --methods lawa+old.py": "old.py defines no name `part`, which must be a",
    "baselines compare --workload metric.py": "metric.py, line 5: ValueError: workload",
    "baselines compare --workload rate.py": "rate.py, line 5: ValueError: learning_rate",
    "baselines compare --dry-run --workload model.py": "model.py, line 5: ZeroDivisionError",
    "baselines compare --dry-run --workload optimizer.py": "optimizer.py, line 5: AttributeError",
    "baselines compare --dry-run --workload batches.py": "batches.py, line 5: ZeroDivisionError",
    "baselines compare --dry-run --workload loss.py": "loss.py, line 5: RuntimeError: mat1",
    "baselines compare --dry-run --workload evaluate.py": "evaluate.py, line 5: it ends the",
    "baselines compare --dry-run --workload own.py --methods head.py": "head.py, line 13: Attribut",
    # Results.
    "baselines score nowhere": "nowhere holds no comparison",
    "baselines score folder.png": "folder.png holds no comparison",
    "baselines score damaged-comparison": "comparison.json is damaged",
    "baselines score damaged-reference": "reference.json is not JSON",
    "baselines score damaged-events": "events.jsonl is damaged",
    "baselines publish nowhere": "nowhere holds no comparison",
    "baselines publish kept damaged-comparison": "comparison.json is damaged",
    "baselines publish kept damaged-reference": "reference.json is not JSON",
    "baselines publish kept damaged-events": "events.jsonl is damaged",
    "baselines publish kept --wait soon": "Invalid value for '--wait'",
    "baselines publish kept --wait nan": "--wait must be at least 0: nan",
    "baselines score kept --plot ''": "--plot must be a file whose name ends in one of",
    "baselines score kept --plot folder.json": "--plot must be a file whose name ends in one of",
    "baselines score kept --plot folder.png": "--plot: folder.png cannot be written",
    "baselines score kept --plot nowhere/p.png": "--plot: nowhere/p.png cannot be written",
    "baselines score kept --plot p.nothing": "--plot must be a file whose name ends in one of",
}


@pytest.mark.parametrize("command", CASES, ids=lambda command: command[:70])
def test_what_cannot_be_done_is_one_line(command: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    status, out, err = ended(*shlex.split(command))
    assert_one_line(status, out, err)
    assert CASES[command] in err
    assert sorted(folder.rglob("*")) == before


def test_a_name_is_shown_as_it_is(folder: Path) -> None:
    """Whatever rich, matplotlib or a terminal would make of it."""
    names = ("[/red]", "[bold]x[/bold]", ":smile:", "\\[x]")
    for name in names:
        document = json.loads((folder / "good.json").read_text())
        called(name)(document)
        (folder / "named.json").write_text(json.dumps(document))
        for command in (["show", "named.json"], ["compare", "named.json", "named.json"]):
            status, out, err = ended("timing", *command)
            assert (status, err) == (0, "")
            assert f"│ {name} " in out
    (folder / "named.json").unlink()


def test_a_path_and_a_metric_are_drawn_as_they_are() -> None:
    made = comparison(CURVES)
    workload = dataclasses.replace(made.plan.workload, metric="error [$x_{$] :smile:")
    made = dataclasses.replace(made, plan=dataclasses.replace(made.plan, workload=workload))
    for figure in plots.figures(made).values():
        figure.savefig(io.BytesIO())
    shown = commandline.console()
    bar = commandline.progress_bar(shown)
    bar.add_task("[/red] :smile:", total=1)
    with shown.capture() as printed:
        shown.print(bar.get_renderable())
    assert "[/red] :smile:" in printed.get()


def test_a_fault_of_our_own_is_a_line_that_says_where_the_traceback_is(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    # Without a line of a test in its traceback, which would be a user's code.
    monkeypatch.setattr("timing.cli.app.probe_gpus", functools.partial(int, "no number"))
    status, out, err = ended("timing", "probe")
    assert (status, out) == (commandline.OUR_FAULT, "")
    (line,) = err.splitlines()
    assert line.startswith("error: this is a fault of lawa-opt and not yours, please report it: ")
    assert "ValueError: invalid literal for int() with base 10: 'no number'" in line
    kept = Path(line.rpartition("its traceback is in ")[2])
    assert "timing/cli/app.py" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.unlink()


def test_a_lack_of_memory_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timing.cli.app.probe_gpus", functools.partial(bytearray, 2**62))
    status, out, err = ended("timing", "probe")
    assert_one_line(status, out, err)
    assert err.startswith("error: not enough memory")


def test_the_end_of_a_file_is_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As which typer takes it, where pickle or torch reads a file that is cut short."""
    monkeypatch.setattr("timing.cli.app.probe_gpus", functools.partial(pickle.loads, b""))
    status, _, err = ended("timing", "probe")
    assert status == commandline.OUR_FAULT
    assert "EOFError: Ran out of input" in err
    Path(err.strip().rpartition("its traceback is in ")[2]).unlink()


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        **{"stderr": subprocess.PIPE, "text": True, "check": False, **options},
    )


@pytest.mark.parametrize("arguments", ["timing show good.json", "timing --help"])
def test_a_full_disk_for_the_output_is_a_line(arguments: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = command(*arguments.split(), stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


def test_an_output_that_is_closed_is_no_matter() -> None:
    done = command("timing", "show", "good.json", preexec_fn=functools.partial(os.close, 1))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_locale_without_letters_is_no_matter(folder: Path) -> None:
    document = json.loads((folder / "good.json").read_text())
    document["machine"]["processor"] = "Prozessor mit Umlaut: ü"
    (folder / "umlaut.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command(*("timing", "show", "umlaut.json"), stdout=subprocess.PIPE, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Prozessor mit Umlaut: \\xfc" in done.stdout
    assert done.stdout.isascii()
    (folder / "umlaut.json").unlink()


def test_an_interrupt_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = [warm_python.executable(), *shlex.split("-m baselines compare --workload slow.py")]
    started = {
        number: subprocess.Popen(line, cwd=tmp_path, text=True, **pipes)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number, process in started.items():
        assert process.stdout
        assert process.stdout.readline().startswith("Reading the plan.")
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.communicate()[1] == "interrupted\n"
        assert process.returncode == 128 + number


# What stands in a file that somebody edited, or made up.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**500), 10**500),
    st.sampled_from([0, -1, 10**15, 10**400, 10**4000]),
    st.floats(),
    st.sampled_from([1e308, -1e308, 1e-320, 5e-324, float("inf"), float("nan"), 1e-15, 1e9]),
    st.text(max_size=5),
    st.sampled_from(["[/red]", ":smile:", "\n", "\x1b[2J", "\ud800", "9" * 400, "{}", "%s"]),
    st.sampled_from([{}, [], [[]], {"": {}}]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places inside a document."""
    inside = {dict: dict.items, list: enumerate}.get(type(value), lambda _: ())(value)
    return [path, *(place for key, each in inside for place in places(each, (*path, key)))]


DOCUMENT = json.loads(profile_of(ROWS[:2]).model_dump_json())


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A profile, changed in up to three places."""
    document = DOCUMENT
    for _ in range(draw(st.integers(1, 3))):
        document = copy.deepcopy(document)
        place = draw(st.sampled_from(places(document)[1:]))
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["change", "remove", "rename", "everywhere"]))
        if how == "change":
            holder[place[-1]] = copy.deepcopy(draw(VALUES))
        elif how == "remove":
            holder.pop(place[-1])
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5) | st.just("[/red]"))] = holder.pop(place[-1])
        elif isinstance(place[-1], str):
            value = draw(VALUES)
            for other in places(document):
                with contextlib.suppress(LookupError, TypeError):
                    if other and other[-1] == place[-1]:
                        change_of(*other, value=copy.deepcopy(value))(document)
        if len(places(document)) < 2:
            break
    return document


ONE_AT_A_TIME = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@settings(ONE_AT_A_TIME, max_examples=100)
@given(documents())
def test_whatever_a_profile_holds_it_is_shown_or_refused_in_a_line(folder: Path, document) -> None:
    path = folder / "changed.json"
    path.write_text(json.dumps(document))
    for arguments in (
        ["show", "changed.json"],
        ["show", "changed.json", "good.json", "good.json", "--series", "batch"],
        ["compare", "changed.json", "good.json"],
        ["compare", "good.json", "changed.json"],
    ):
        status, out, err = ended("timing", *arguments)
        if status:
            assert_one_line(status, out, err)
        else:
            assert err == ""
    path.unlink()


NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3})?[a-z]{0,3}", fullmatch=True),
    st.integers(1, 6000).map(lambda digits: "9" * digits),
    st.sampled_from(["١٢", "²", "1e999", "-inf", "nan", "1_000", " 7 ", "0x10", "1,,2", ",", "+1"]),
)
TEXTS = NUMBERS | st.text(st.characters(exclude_characters="\0"), max_size=8).filter(
    lambda text: not text.startswith("-")
)
BOTH = ["--workload", "--data", "--budget", "--seeds", "--lr", "--policy", "--threads", "--jobs"]
BOTH += ["--cluster", "--cluster-option"]
SETTINGS = [f"--set={name}" for name in ("lawa.k", "lawa.every", "ema.decay", "swa.start")]
OPTIONS = {
    "compare": [*BOTH, "--methods", "--trials", "--set", *SETTINGS],
    "ablate": [*BOTH, "--k", "--every"],
}


@settings(ONE_AT_A_TIME, max_examples=100)
@given(
    st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.dictionaries(st.sampled_from(OPTIONS[name]), TEXTS, min_size=1, max_size=3),
        )
    )
)
def test_whatever_an_option_is_given_what_is_wrong_is_a_line(line: tuple[str, dict]) -> None:
    # At the latest, the profile is of another workload.
    name, given = line
    given = {"--workload": "own.py", "--budget": "1s", **given, "--reference": "good.json"}
    assert_one_line(*ended("baselines", name, *(f"{key}={text}" for key, text in given.items())))


IN_TRAINING = """
import itertools
calls = itertools.count(1)
def loss(model, batch):
    if next(calls) == 6:
        exit(0)
    return good.loss(model, batch)
"""


@pytest.mark.usefixtures("warm")
def test_what_a_file_does_in_another_process_is_told_with_its_place(tmp_path: Path) -> None:
    text = CHANGED.format(example=str(EXAMPLE), change="loss=loss")
    (tmp_path / "mine.py").write_text(text + IN_TRAINING)
    workload = load(str(tmp_path / "mine.py"))
    plan = Plan(workload, (find("constant"),), (0,), Budget(0.5), 0.1)
    made = profile_of([COSTS], plan.signature)
    write_profile(tmp_path / "kept", made)
    with Processes() as engine:
        done = run_parallel(plan, made, tmp_path / "kept" / "0.5s", engine=engine, jobs=1)
    failure = str(done.runs[0].failure)
    assert f"{tmp_path / 'mine.py'}, line 11: it ends the process (sys.exit)" in failure
    assert "\n" not in failure
