"""What a folder names is not run: reading runs nothing, a training what the command line names."""

import dataclasses
import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from baselines.analysis import plots, report, tables
from baselines.cli import console as screen
from baselines.cli.app import app
from baselines.experiment import tuning
from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.executor import run_parallel
from baselines.experiment.kept import read_comparison
from baselines.experiment.manifest import FolderError, Manifest
from baselines.experiment.plan import Plan, Trial
from baselines.experiment.processes import Processes
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, write_or_verify, write_profile
from baselines.experiment.worker import work
from baselines.methods.method import Method
from baselines.methods.names import find
from baselines.methods.schedules import Wsd
from baselines.training.events import Failed, Started
from baselines.workloads import load
from tests.support.commands import command
from tests.support.comparisons import CURVES, comparison, kept
from tests.support.kept_comparison import PROFILE, plan_of, results
from tests.support.user_files import SCHEDULE, averager

PLACES = ("method", "workload", "tuning")
DECAYED = SCHEDULE.format("1 - spent")
EMA = """
from baselines.methods.averagers.ema import EmaPart

class Own(EmaPart):
    name = "mine"

part = Own()
"""


class EvilPart(Wsd):
    """The part of the file, without its being run."""

    name = title = "evil"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A file that leaves another one where it is run."""
    path = tmp_path / "evil.py"
    path.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'PWNED')!r}).touch()\n"
        "from baselines.methods.schedules import Wsd\n"
        "from baselines.workloads.digits import load\n"
        "class Evil(Wsd):\n    name = title = 'evil'\n"
        "part = Evil()\n"
    )
    return path


def with_evil(place: str, evil: Path) -> Comparison:
    """A comparison that names the file there, in the place of the decayed rate."""
    name, made = str(evil), comparison(CURVES)
    method = Method(name, "evil", schedule=EvilPart(), files=(name,))
    plan, digest = made.plan, hashlib.sha256(evil.read_bytes()).hexdigest()
    plan = dataclasses.replace(
        plan, methods=tuple(method if m.name == "decayed" else m for m in plan.methods)
    )
    (result,) = made.trainings
    runs = tuple(
        dataclasses.replace(r, method=name) if r.method == "decayed" else r for r in result.runs
    )
    made = dataclasses.replace(made, trainings=(dataclasses.replace(result, runs=runs),))
    if place == "workload":
        data = {**plan.workload.data, "file": evil.name, "file_sha256": digest}
        own = dataclasses.replace(plan.workload, source=(name, name), data=data)
        plan = dataclasses.replace(plan, workload=own)
    elif place == "tuning":
        varied = [{"evil.cooldown": 0.2}, {"evil.cooldown": 0.3}]
        trials = [
            Trial(m.name, number, 0.1, m.with_settings(own).settings, 1.0 + number, 4.0, 4.0)
            for number, settings in enumerate(varied)
            for m in plan.methods
            for own in [settings if m is method else {}]
        ]
        plan = dataclasses.replace(plan, trials=2, tried=tuple(trials))
    return dataclasses.replace(made, plan=plan)


@pytest.mark.parametrize(
    "place", ["method", *(pytest.param(p, marks=pytest.mark.slow) for p in PLACES[1:])]
)
def test_reading_results_runs_nothing(place: str, evil: Path, tmp_path: Path) -> None:
    root = kept(with_evil(place, evil), tmp_path / "sent-by-somebody")
    arguments = ["score", str(root), "--plot", str(tmp_path / "profile.png")]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "\n evil " in done.output
    found = read_comparison(root)
    assert "| evil |" in report.markdown(found)
    assert str(evil) in tables.columns(found)["method"]
    assert tables.ranking([found])[2][0] == "evil"
    assert plots.figures(found).keys() >= {"final-metric", "account"}
    screen.show(found)
    if place == "tuning":
        assert [row[:2] for row in tuning.rows(found.plan)][2] == [
            "evil",
            "learning_rate=0.1, evil.cooldown=0.2",
        ]
    assert not (tmp_path / "PWNED").exists()
    # It would have been seen, and is the method that was read.
    run, read = find(str(evil)), found.plan.method(str(evil))
    assert (run.name, run.title, run.settings) == (read.name, read.title, read.settings)
    assert (tmp_path / "PWNED").exists()


@pytest.mark.slow
def test_publishing_runs_nothing(evil: Path, tmp_path: Path) -> None:
    root = kept(with_evil("tuning", evil), tmp_path / "sent-by-somebody")
    done = command(tmp_path, "publish", str(root))
    assert done.returncode == 0, done.stderr
    assert f": {3 * 3} runs with {3 * 3 * 4} points." in done.stdout
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("place", ["method", "workload"])
@pytest.mark.parametrize("named", ["not", "with another text"])
def test_a_training_runs_no_file_that_its_command_line_does_not_name(
    place: str, named: str, evil: Path, tmp_path: Path
) -> None:
    root = kept(with_evil(place, evil), tmp_path / "root")
    files = {} if named == "not" else {str(evil): hashlib.sha256(b"what I had seen").hexdigest()}
    with pytest.raises(FolderError, match=r"names the file .*evil.py.*: nothing of it is run"):
        work(str(root / "4s"), 0, files)
    assert not (tmp_path / "PWNED").exists()


def test_a_digest_that_the_folder_leaves_out_allows_nothing(evil: Path, tmp_path: Path) -> None:
    root = kept(with_evil("method", evil), tmp_path / "root")
    path = root / "4s" / "comparison.json"
    description = Manifest.read(path.parent)
    bare = description.model_copy(update={"method_files_sha256": {}})
    path.write_text(bare.model_dump_json())
    with pytest.raises(FolderError, match="nothing of it is run"):
        work(str(path.parent), 0, {})
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("said", ["no file", "a file of the command line"])
def test_a_file_that_the_folder_names_and_does_not_list_is_not_run(
    said: str, evil: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(EMA)
    listed = {} if said == "no file" else {str(mine): hashlib.sha256(EMA.encode()).hexdigest()}
    root = kept(with_evil("method", evil), tmp_path / "root")
    path = root / "4s" / "comparison.json"
    description = Manifest.read(path.parent)
    changed = {
        "methods": tuple(m.model_copy(update={"files": (*listed,)}) for m in description.methods),
        "method_files_sha256": listed,
        "source": ("digits", None),
    }
    path.write_text(description.model_copy(update=changed).model_dump_json())
    with suppress(FolderError):
        read_comparison(root)
    assert not (tmp_path / "PWNED").exists()
    with pytest.raises(FolderError):
        work(str(path.parent), 0, listed)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_file_of_another_text_than_the_comparison_began_with_is_not_run(
    evil: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(EMA)
    plan = plan_of(0.5, 1, (str(mine),))
    write_profile(tmp_path, PROFILE)
    said: dict[str, str | None] = {}

    class Changes(Processes):
        def submit(self, *task):
            mine.write_text(evil.read_text())
            return super().submit(*task)

    def listen(event):
        if isinstance(event, Failed):
            said.update(dict.fromkeys(event.methods, event.reason))

    with Changes() as engine:
        folder = budget_folder(tmp_path, plan)
        run_parallel(plan, PROFILE, folder, listen, engine=engine, jobs=1)
    assert f"{mine} has changed since the comparison began" in str(said[str(mine)])
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.slow
def test_a_file_that_changes_meanwhile_is_not_run_again(evil: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(EMA)
    plan = plan_of(0.5, 2, (str(mine),))
    undisturbed = results(compare(plan, PROFILE))

    def change(event):
        if isinstance(event, Started):
            mine.write_text(evil.read_text())

    assert results(resume(plan, PROFILE, tmp_path / "0.5s", change)) == undisturbed
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.slow
def test_a_file_that_changes_between_two_budgets_stops_the_command(tmp_path: Path) -> None:
    """This one does so itself, as it trains."""
    mine = tmp_path / "mine.py"
    step = """
    def after_step(self, spent):
        file = Path(__file__)
        file.write_text(file.read_text() + "#")
"""
    mine.write_text(averager(step))
    PROFILE.write(tmp_path / "reference.json")
    options = "--workload digits --seeds 1 --methods mine.py --budget 0.2s,0.3s --no-publish"
    done = command(tmp_path, "compare", *options.split(), "--reference", "reference.json")
    assert done.returncode == 1
    assert "digits: 0.2 s of RST each" in done.stdout
    assert "0.3 s of RST each" not in done.stdout
    assert not list(tmp_path.glob("lawa-runs/*/0.3s"))
    assert done.stderr.startswith("error: mine.py has changed since the comparison began")
    assert done.stderr.count("\n") == 1


def test_going_on_reads_no_more_of_a_folder_than_that_it_is_of_this_command(
    evil: Path, tmp_path: Path
) -> None:
    plan = plan_of(0.5, 1, ("constant", "decayed"))
    kept(with_evil("method", evil), tmp_path / "root")
    folder = budget_folder(tmp_path / "root", plan)
    (tmp_path / "root" / "4s").rename(folder)
    with pytest.raises(FolderError, match="holds another comparison"):
        resume(plan, PROFILE, folder)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_files_of_the_command_line_are_run_side_by_side(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    method = tmp_path / "mine.py"
    method.write_text(DECAYED)
    workload = tmp_path / "images.py"
    workload.write_text("from baselines.workloads.digits import load\n")
    plan: Plan = plan_of(0.5, 1, ("constant", str(method)))
    plan = dataclasses.replace(plan, workload=load(str(workload)))
    assert write_or_verify(tmp_path / "x", plan).files_sha256.keys() == {str(method), str(workload)}
    write_profile(tmp_path, PROFILE)
    with Processes() as engine:
        folder = budget_folder(tmp_path, plan)
        done = run_parallel(plan, PROFILE, folder, engine=engine, jobs=2)
    assert results(done) == results(compare(plan, PROFILE))
    torch.set_num_threads(threads)
