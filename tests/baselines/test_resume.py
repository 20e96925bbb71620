"""A comparison that is cut off anywhere goes on, and ends with the table of an undisturbed one."""

import dataclasses
import hashlib
import io
import operator
import os
import random
import re
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.kept import read_comparison
from baselines.experiment.lock import Lock, LockedError
from baselines.experiment.manifest import FolderError
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, root_of, write_profile
from baselines.methods.names import NAMES, RECIPES, find
from baselines.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    StorageError,
    write_atomically,
)
from baselines.training.events import Ended, Evaluated, Event, ignore, read_events
from baselines.training.loop import train
from baselines.training.results import TrainingResult
from baselines.workloads.base import Workload
from tests.support.commands import Command
from tests.support.kept_comparison import PROFILE, plan_of, results
from tests.support.trainings import COSTS, RATE, WORKLOAD, method_of
from tests.support.waiting import wait_for
from timing import Budget

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ONE = plan_of(budget=0.3, seeds=1, methods=("constant", "lawa"))
SMALL = plan_of(budget=0.5, seeds=2, methods=("constant", "lawa", "decayed"))
CONSTANT, LAWA, DECAYED = SMALL.methods


class CutOff(BaseException):
    """What a test ends a training with."""


def cut_off(workload: Workload, step: int, how: type[BaseException] = CutOff) -> Workload:
    """The workload, whose loss raises at this call, counted over all trainings."""
    calls = count(1)

    def loss(model, batch):
        if next(calls) == step:
            raise how("cut off here")
        return workload.loss(model, batch)

    return dataclasses.replace(workload, loss=loss)


def with_dropout() -> Workload:
    """Digits, with a model that draws random numbers as it trains."""

    def make_model():
        model = WORKLOAD.make_model()
        return torch.nn.Sequential(torch.nn.Dropout(0.1), model)

    return dataclasses.replace(WORKLOAD, make_model=make_model)


def trained(workload: Workload, method: str, folder: Path | None) -> TrainingResult:
    return train(
        *(workload, [method_of(method)], 3, Budget(0.6), COSTS, RATE, 4),
        checkpoints=Checkpoints(folder, seconds=0.0) if folder else None,
    )


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    # Recipes are cut off in test_recipe_steps.
    st.sampled_from(sorted({*NAMES} - {*RECIPES})),
    st.lists(st.integers(1, 30), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_training_cut_off_anywhere_ends_as_an_undisturbed_one(
    tmp_path_factory, method, steps, drops
) -> None:
    folder = tmp_path_factory.mktemp("training")
    workload = with_dropout() if drops else WORKLOAD
    for step in steps:
        try:
            trained(cut_off(workload, step), method, folder)
        except CutOff:
            continue
        break
    assert trained(workload, method, folder).runs == trained(workload, method, None).runs


def test_draws_differ_from_step_to_step_and_from_seed_to_seed() -> None:
    drawn = []

    def loss(model, batch):
        drawn.append(float(torch.rand(())))
        return WORKLOAD.loss(model, batch)

    for seed in (0, 1):
        train(
            *(dataclasses.replace(WORKLOAD, loss=loss), [find("constant")]),
            *(seed, Budget(0.2), COSTS, RATE, 1),
        )
    assert len(set(drawn)) == len(drawn) > 20


def carried_out(plan: Plan, folder: Path, on_event=ignore, **options) -> Comparison:
    return resume(plan, PROFILE, folder, on_event, checkpoint_seconds=0.0, **options)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A comparison that has ended, and its folder."""
    root = tmp_path_factory.mktemp("ended")
    write_profile(root, PROFILE)
    return root, carried_out(SMALL, budget_folder(root, SMALL))


@pytest.fixture
def ended_here(ended: tuple[Path, Comparison], tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return budget_folder(Path(shutil.copytree(ended[0], tmp_path / "ended")), SMALL)


@pytest.fixture(scope="module")
def undisturbed_small() -> str:
    return results(compare(SMALL, PROFILE))


def test_what_has_ended_is_not_run_again_and_is_told_again(
    tmp_path: Path, undisturbed_small: str
) -> None:
    told: list[Event] = []
    undisturbed = carried_out(SMALL, tmp_path, told.append)
    first, told[:] = list(told), []
    forbidden = dataclasses.replace(SMALL.workload, batches=lambda *_: pytest.fail("trained"))
    again = carried_out(dataclasses.replace(SMALL, workload=forbidden), tmp_path, told.append)
    assert results(again) == results(undisturbed) == undisturbed_small
    assert told == first
    assert len([event for event in told if isinstance(event, Evaluated)]) > 20


def test_no_checkpoint_is_left_behind_a_result(ended: tuple[Path, Comparison]) -> None:
    root, _ = ended
    assert not list(root.rglob("*.pt"))
    logs = [read_events(path.parent) for path in root.rglob("events.jsonl")]
    assert [type(log[-1]) for log in logs] == [Ended] * 4


def cut(plan: Plan, folder: Path, step: int, how: type[BaseException] = CutOff) -> Comparison:
    workload = cut_off(plan.workload, step, how)
    return carried_out(dataclasses.replace(plan, workload=workload), folder)


def write_checkpoint(path: Path, state: object) -> None:
    """With a right digest, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    path.write_bytes(body + hashlib.sha256(body).digest())


def read_checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(io.BytesIO(path.read_bytes()[:-32]), weights_only=True)


class Evil:
    """What runs a command where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def cut_off_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was cut off in its only training."""
    folder = tmp_path_factory.mktemp("cut-off") / "0.3s"
    with pytest.raises(CutOff):
        cut(ONE, folder, 27)
    return folder


@pytest.fixture(scope="module")
def undisturbed_one() -> str:
    return results(compare(ONE, PROFILE))


def assert_passed_over(folder: Path, newest: Path, undisturbed: str) -> str:
    said: list[str] = []
    assert results(resume(ONE, PROFILE, folder, warn=said.append)) == undisturbed
    (line,) = said
    assert line.startswith(f"checkpoint {newest} cannot be read (")
    assert "\n" not in line
    # torch's advice would have the file run what it likes.
    assert "weights_only" not in line
    return line


@pytest.fixture
def cut_off_here(cut_off_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(cut_off_once, tmp_path / "0.3s"))


def test_two_checkpoints_are_kept_and_a_damaged_one_is_named_and_passed_over(
    cut_off_here: Path, undisturbed_one: str
) -> None:
    _, newest = sorted(cut_off_here.rglob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert_passed_over(cut_off_here, newest, undisturbed_one)


def test_one_flipped_bit_is_seen(cut_off_here: Path, undisturbed_one: str) -> None:
    _, newest = sorted(cut_off_here.rglob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert "its digest is another" in assert_passed_over(cut_off_here, newest, undisturbed_one)


@pytest.mark.parametrize("content", ["a list", "nothing", "other", "code", "older", "of seed 1"])
def test_a_checkpoint_of_other_content_is_told_and_passed_over(
    content: str, cut_off_here: Path, undisturbed_one: str, tmp_path: Path
) -> None:
    _, newest = sorted(cut_off_here.rglob("*.pt"))
    state = read_checkpoint(newest)
    older = {key: value for key, value in state.items() if key != "of"}
    of_seed_1 = {**state, "of": {**state["of"], "seed": 1}}
    holds = "the saved state of training has"
    others, said = {
        "a list": ([state], "it holds a list in place of a training's state"),
        "nothing": ({}, f"{holds} nothing where of, step, updates, drawn, ran, model"),
        "other": ({"w": torch.ones(3)}, f"{holds} w where of, step, updates, drawn"),
        "code": ({**state, "step": Evil(tmp_path / "PWNED")}, "to read that can run code"),
        "older": (older, f"{holds} step, updates, drawn, ran, model, "),
        "of seed 1": (of_seed_1, "it is of another training"),
    }[content]
    write_checkpoint(newest, others)
    assert said in assert_passed_over(cut_off_here, newest, undisturbed_one)
    assert not (tmp_path / "PWNED").exists()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_state_that_lacks_something_is_told_and_passed_over(
    data: st.DataObject, cut_off_once: Path, undisturbed_one: str, tmp_path_factory
) -> None:
    folder = Path(shutil.copytree(cut_off_once, tmp_path_factory.mktemp("copy") / "0.3s"))
    _, newest = sorted(folder.rglob("*.pt"))
    state = read_checkpoint(newest)
    at = data.draw(
        st.sampled_from(
            [state, state["of"], state["ran"], state["runs"], *state["runs"].values()]
            + [run["account"] for run in state["runs"].values()]
            + [point for run in state["runs"].values() for point in run["points"]]
        )
    )
    key = data.draw(st.sampled_from(sorted(at)))
    # Without them it is of an earlier version, and of a plan that reads in float alone.
    may_lack = {"read", "read_test", "rounded"}
    if data.draw(st.booleans()) and key not in may_lack:
        del at[key]
    else:
        at[key] = [None, torch.ones(2, dtype=torch.complex64)]
    write_checkpoint(newest, state)
    assert_passed_over(folder, newest, undisturbed_one)


def test_with_no_checkpoint_to_read_nothing_starts_from_zero(cut_off_here: Path) -> None:
    for path in cut_off_here.rglob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"remove that folder to start .* again"):
        carried_out(ONE, cut_off_here, warn=lambda _: None)


def test_damaged_events_are_named(ended_here: Path) -> None:
    path = ended_here / "decayed-seed-1" / "events.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    point = next(place for place, line in enumerate(lines) if b'"evaluated"' in line)
    for damaged, said in (
        ([*lines[:point], lines[point][:30] + b"\n", *lines[point + 1 :]], "a line is no event"),
        ([*lines[:point], *lines[point + 1 :]], r"decayed, seed 1, has \d+ of \d+ points"),
        ([*lines[:-1], lines[-1].replace(b"decayed", b"constant")], "constant, seed 1, has 0 of"),
        ([lines[0], lines[-1].replace(b'"points":', b'"seen":')], "a line is no event"),
    ):
        path.write_bytes(b"".join(damaged))
        found = rf"decayed-seed-1/events.jsonl is damaged \(.*{said}.*remove \S+ to train it again"
        with pytest.raises(FolderError, match=found):
            carried_out(SMALL, ended_here)
    # As one of another training would be.
    path.write_bytes((ended_here / "constant-seed-1" / "events.jsonl").read_bytes())
    with pytest.raises(FolderError, match=r"decayed-seed-1/events.jsonl is damaged \(they are of"):
        carried_out(SMALL, ended_here)


def test_a_run_that_raises_fails_with_its_reason_and_the_others_go_on(
    tmp_path: Path, undisturbed_small: str
) -> None:
    done = cut(SMALL, tmp_path, 30, RuntimeError)
    failed = [run for run in done.runs if run.failure]
    assert {(run.method, run.seed) for run in failed} == {("constant", 0), ("lawa", 0)}
    assert all(
        re.fullmatch(r"at step 29: \S*test_resume\.py, line \d+: RuntimeError: cut off here", said)
        for said in (str(run.failure) for run in failed)
    )
    assert all(run.test == float("inf") for run in failed)
    # It is tried again, from its latest checkpoint.
    calls = count()
    workload = dataclasses.replace(
        SMALL.workload, loss=lambda m, b: next(calls) * 0 + SMALL.workload.loss(m, b)
    )
    again = carried_out(dataclasses.replace(SMALL, workload=workload), tmp_path)
    assert results(again) == undisturbed_small
    assert next(calls) < 30


def test_the_traceback_of_a_library_lies_beside_the_events(tmp_path: Path) -> None:
    # It raises a TypeError, in no line of anybody's file.
    workload = dataclasses.replace(ONE.workload, loss=operator.truediv)
    done = carried_out(dataclasses.replace(ONE, workload=workload), tmp_path)
    (events,) = tmp_path.glob("**/events.jsonl")
    (written,) = events.parent.glob("traceback-*.txt")
    assert "TypeError: unsupported operand" in written.read_text()
    assert written.stat().st_mode & 0o077 == 0
    for run in done.runs:
        assert str(run.failure).endswith(f"; its traceback is in {written}")


def test_a_loss_that_is_no_number_stands(tmp_path: Path) -> None:
    plan = dataclasses.replace(SMALL, learning_rate=1e9)
    first = carried_out(plan, tmp_path)
    assert all("lower the rate" in str(run.failure) for run in first.runs)
    forbidden = dataclasses.replace(plan.workload, batches=lambda *_: pytest.fail("trained"))
    again = carried_out(dataclasses.replace(plan, workload=forbidden), tmp_path)
    assert [run.failure for run in again.runs] == [run.failure for run in first.runs]


def test_a_folder_of_another_comparison_is_refused(ended_here: Path) -> None:
    other = dataclasses.replace(SMALL, seeds=(0, 1, 2))
    with pytest.raises(FolderError, match="holds another comparison"):
        carried_out(other, ended_here)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (0,)},
        {"budget": Budget(0.6)},
        {"policy": "mlperf"},
        {"learning_rate": 0.06},
        {"methods": (CONSTANT, LAWA.with_settings({"lawa.k": 4}), DECAYED)},
        {"methods": (CONSTANT, LAWA, dataclasses.replace(DECAYED, learning_rate=0.1))},
        {"methods": (CONSTANT, DECAYED, LAWA)},
        {"workload": dataclasses.replace(WORKLOAD, data={"sha256": "0" * 64})},
    ],
)
def test_another_comparison_has_another_folder(tmp_path: Path, change) -> None:
    folder = root_of(tmp_path, [SMALL])
    assert folder == root_of(tmp_path, [plan_of(0.5, 2, SMALL.names)])
    assert folder != root_of(tmp_path, [dataclasses.replace(SMALL, **change)])
    assert folder != root_of(tmp_path, [SMALL], "the digest of a profile")


def test_a_comparison_is_read_back_without_its_data(
    ended: tuple[Path, Comparison], ended_here: Path
) -> None:
    folder, root = ended_here, ended_here.parent
    for path in (folder, root):
        back = read_comparison(path)
        assert results(back) == results(ended[1])
        assert back.profile == PROFILE
        assert back.plan.signature == SMALL.signature
    (folder / "decayed-seed-1" / "events.jsonl").unlink()
    with pytest.raises(FolderError, match="has not ended: seed 1 of decayed"):
        read_comparison(folder)
    (folder / "comparison.json").write_text("{")
    with pytest.raises(FolderError, match=r"comparison.json is damaged"):
        read_comparison(folder)
    with pytest.raises(FolderError, match="holds no comparison"):
        read_comparison(root / "nowhere")


def start(folder: Path, *more: str) -> Command:
    return Command(ROOT, "tests.support.kept_comparison", str(folder), *more)


def wait_until_it_has_begun(process: Command) -> None:
    """Importing what it needs is no part of the comparison."""
    wait_for(lambda: process.err.exists() and process.err.stat().st_size)


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return results(compare(plan_of(), PROFILE))


def test_killed_again_and_again_it_ends_with_the_very_table(
    tmp_path: Path, undisturbed: str
) -> None:
    """benchmarks/faults.py does the same 20 times to the command itself."""
    moments = random.Random(0)
    kills = 0
    while kills < 4:
        process = start(tmp_path)
        wait_until_it_has_begun(process)
        time.sleep(moments.uniform(0, 1.2))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    out, said = start(tmp_path).communicate()
    assert kills
    assert out.strip() == undisturbed, said


def test_a_full_disk_stops_it_with_one_line_and_it_goes_on_with_room(
    tmp_path: Path, undisturbed: str
) -> None:
    with pytest.raises(CutOff):
        resume(
            dataclasses.replace(plan_of(), workload=cut_off(plan_of().workload, 100)),
            *(PROFILE, budget_folder(tmp_path, plan_of())),
            checkpoint_seconds=0.0,
        )
    kept = {path: path.read_bytes() for path in tmp_path.rglob("step-*.pt")}
    full = start(tmp_path, "20000")
    said = full.communicate()[1].splitlines()[-1]
    assert full.returncode
    assert said.startswith("baselines.training.checkpoint.StorageError: ")
    assert "File too large" in said
    assert "give the same command, which goes on from there" in said
    assert kept
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert not list(tmp_path.rglob("*.partial"))
    assert start(tmp_path).communicate()[0].strip() == undisturbed


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")
    path.with_name("file.partial").mkdir()
    with pytest.raises(StorageError, match="could not be written: Is a directory"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockedError, match=r"file/lock cannot be written: File exists"):
        Lock(tmp_path / "file").__enter__()


def test_a_second_process_is_told_who_has_the_comparison(tmp_path: Path) -> None:
    first = start(tmp_path)
    wait_until_it_has_begun(first)
    with pytest.raises(LockedError, match=rf"{tmp_path} is in use by process {first.pid} on "):
        Lock(tmp_path).__enter__()
    second = start(tmp_path)
    assert f"in use by process {first.pid}" in second.communicate()[1]
    assert second.returncode
    first.kill()
    first.communicate()
    with Lock(tmp_path, wait_seconds=5):
        pass
