"""The study of windows: what it evaluates, what it keeps and what it says of it."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lawa_opt import LAWA, CheckpointError, Study, WindowStudy, study
from lawa_opt.__main__ import main
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.studying import write
from lawa_opt.studying.result import Point
from lawa_opt.studying.windows import LIVE, StudyWindow
from tests.support.small_training import everything, same, small_model, train

STEPS = [3, 10, 11, 30, 31, 60, 64, 100]
ALL = len(STEPS) + sum(
    len(STEPS) - span + 1 for span in (2, 3, 3, 5)
)  # live, k=2 and 3, every 1, 2


def saved_run(folder: Path, steps: list[int] = STEPS) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    states = []
    folder.mkdir()
    for step in steps:
        states.append(
            {
                "w": torch.randn(50, 3, generator=generator),
                "b": torch.randn(7, generator=generator).bfloat16(),
                "n": torch.tensor(step),
                "empty": torch.empty(0),
            }
        )
        torch.save(states[-1], folder / f"step-{step}.pt")
    return states


def norm(state: dict[str, torch.Tensor]) -> float:
    assert state["empty"].numel() == 0
    return float(state["w"].double().square().sum() + state["b"].double().sum() + state["n"])


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(write, "draw", lambda study, file: None)


@pytest.fixture
def run(tmp_path: Path, no_picture: None) -> Path:
    saved_run(tmp_path / "run")
    return tmp_path / "run"


def look(run: Path, evaluate: Any = norm, **options: Any) -> Study:
    return study([run], evaluate, **{"k": [2, 3], "every": [1, 2], **options})


def values(found: Study) -> dict[tuple[int, str], float]:
    return {(p.step, str(p.window)): p.values["metric"][1] for p in found.points}


def test_each_window_is_that_of_a_slow_loop_over_all_files(tmp_path: Path) -> None:
    states = saved_run(tmp_path / "run")
    found = look(tmp_path / "run", weights=["uniform", "1-sqrt"])
    expected = {}
    for end, step in enumerate(STEPS):
        for window in found.windows:
            places = [end - i * window.every for i in range(window.k)][::-1]
            if places[0] < 0:
                continue
            factors = [1 / window.k] * window.k
            if window.weights == "1-sqrt":
                t = [STEPS[place] for place in places]
                begin, finish = 1.5 * t[0] - 0.5 * t[1], 1.5 * t[-1] - 0.5 * t[-2]
                w = [1.0]
                for a, b in pairwise(t):
                    w.append(1 - (((a + b) / 2 - begin) / (finish - begin)) ** 0.5)
                factors = [a - b for a, b in zip(w, [*w[1:], 0.0], strict=True)]
            mean = {
                name: sum(
                    f * states[p][name].double() for f, p in zip(factors, places, strict=True)
                )
                for name in ("w", "b")
            }
            mean["b"] = mean["b"].bfloat16()
            expected[step, str(window)] = norm({**states[end], **mean})
    assert values(found) == pytest.approx(expected, rel=1e-2)
    exact = {key: value for key, value in expected.items() if key[1] == "live"}
    assert {key: values(found)[key] for key in exact} == exact
    assert len({round(value, 3) for value in expected.values()}) > len(expected) * 0.9


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of checkpoints, each time that one is read."""
    names: list[str] = []
    reading = Checkpoint.read

    def counted(self: Checkpoint, pieces: Any) -> Iterator[Any]:
        names.append(self.path.name)
        return reading(self, pieces)

    monkeypatch.setattr(Checkpoint, "read", counted)
    return names


def test_each_file_is_read_once_and_what_is_kept_not_at_all(
    run: Path, tmp_path: Path, read: list[str]
) -> None:
    first = look(run, out=tmp_path / "out")
    assert read == [f"step-{step}.pt" for step in STEPS]
    read.clear()
    calls: list[float] = []

    def again(state: Any) -> float:
        calls.append(norm(state))
        return calls[-1]

    again.__qualname__ = norm.__qualname__
    assert values(look(run, again, out=tmp_path / "out")) == values(first)
    assert not read
    assert not calls
    # One more file: its windows alone, of the files that these reach.
    torch.save(saved_run(tmp_path / "more", [200])[0], run / "step-200.pt")
    look(run, again, out=tmp_path / "out")
    assert read == [f"step-{step}.pt" for step in (*STEPS[-4:], 200)]
    assert len(calls) == 5


def test_a_study_that_was_cut_off_goes_on_and_ends_as_one_that_was_not(
    run: Path, tmp_path: Path
) -> None:
    calls: list[int] = []

    def cut(state: Any) -> float:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return norm(state)

    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        look(run, cut, out=tmp_path / "out", progress=lambda *done: seen.append(done))
    assert seen[0] == (0, ALL)
    assert seen[-1] == (8, ALL)
    with (tmp_path / "out" / "evaluations.jsonl").open("a") as file:
        file.write('{"key": "cut off in the mid')  # as by a kill in the middle of a line
    found = look(run, cut, out=tmp_path / "out")
    assert len(calls) == ALL + 1
    assert values(found) == values(look(run))
    look(run, cut, out=tmp_path / "out")
    assert len(calls) == ALL + 1


def test_what_has_changed_is_evaluated_anew(run: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(state: Any) -> float:
        calls.append(1)
        return norm(state)

    def made(**options: Any) -> int:
        calls.clear()
        look(run, counted, out=tmp_path / "out", **options)
        return len(calls)

    assert made() == ALL
    assert made() == 0
    assert made(k=[2, 3, 4], every=[1]) == len(STEPS) - 3
    assert made(weights=["linear"]) == len(STEPS) - 2 + len(STEPS) - 4  # of two, it is uniform
    torch.save(torch.load(run / "step-3.pt"), run / "step-3.pt")
    os.utime(run / "step-3.pt", ns=(1, 1))
    assert made() == 1 + 1 + 1 + 1 + 1  # each window that holds it once


def test_an_evaluation_that_fails_is_marked_and_tried_again(run: Path, tmp_path: Path) -> None:
    def failing(state: Any) -> float:
        if state["n"] == 31:
            raise RuntimeError("out of\nluck")
        return norm(state)

    found = look(run, failing, out=tmp_path / "out")
    failed = [point for point in found.points if point.error]
    assert {point.step for point in failed} == {31}
    assert len(failed) == 5
    assert failed[0].error.startswith("RuntimeError: out of luck (test_study.py, line ")
    assert f"5 of {ALL} evaluations failed, the first at step 31 of live" in str(found)
    failing_again = len(look(run, failing, out=tmp_path / "out").failed)
    assert failing_again == 5
    rows = list(csv.DictReader((tmp_path / "out" / "study.csv").read_text().splitlines()))
    assert sum(bool(row["error"]) for row in rows) == 5


@pytest.mark.parametrize("returned", ["0.5", None, {}, (1, 2, 3), {"a": [1]}, True])
def test_a_function_must_return_numbers(run: Path, returned: Any) -> None:
    with pytest.raises(CheckpointError, match=f"all {ALL} evaluations failed, .* the function "):
        look(run, lambda state: returned)


@pytest.mark.parametrize(
    ("number", "higher"), [(math.nan, False), (math.inf, False), (math.inf, True)]
)
def test_what_is_no_finite_number_counts_for_nothing_and_is_said(
    run: Path, tmp_path: Path, number: float, higher: bool
) -> None:
    def diverging(state: Any) -> float:
        return number if state["n"] == 30 else norm(state)

    def failing(state: Any) -> float:
        return norm(state) if state["n"] != 30 else 1 / 0

    options = {"higher_is_better": higher}
    found = look(run, diverging, out=tmp_path / "out", **options)
    other = look(run, failing, **options)
    for step in STEPS:
        assert found.best(step) == other.best(step)
        for window in found.windows:
            assert found.saved(step, window) == other.saved(step, window)
    assert found.to_target() == other.to_target()
    assert f"4 of {ALL} evaluations give no finite metric and count for nothing, the first at " in (
        str(found)
    )
    assert f"step 30 of live: {number}" in str(found)
    assert "first half" not in str(found)  # as NaN differs from itself

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "out" / "study.json").read_text(), parse_constant=refuse)


def test_a_metric_that_some_evaluations_lack_is_said(run: Path) -> None:
    found = look(run, lambda state: {"b" if state["n"] == 100 else "a": 1.0})
    assert f"5 of {ALL} evaluations give no finite a and count for nothing" in str(found)
    assert "step 100 of live: missing" in str(found)
    assert "the live weights end with, at step 64 where they last have a number" in str(found)


def test_what_a_function_does_to_the_state_dict_is_gone_with_the_next(run: Path) -> None:
    def careless(state: Any) -> float:
        found = norm(state)
        for name in list(state):
            tensor = state.pop(name)
            if tensor.is_floating_point():
                tensor.zero_().unsqueeze_(0).requires_grad_()
            state[f"module.{name}"] = tensor
        return found

    assert values(look(run, careless)) == values(look(run, norm))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2}, r"k must be a list, as \[2\]"),
        ({"every": 2}, r"every must be a list, as \[2\]"),
        ({"weights": "1-sqrt"}, r"weights must be a list, as \['1-sqrt'\]"),
        ({"jobs": 2}, 'several jobs need functions that each can import, as "FILE.py:FUNCTION"'),
    ],
)
def test_what_python_gives_wrongly_is_said(
    run: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        look(run, lambda state: norm(state), **options)


def test_a_function_that_exits_has_failed(run: Path) -> None:
    def exiting(state: Any) -> float:
        return norm(state) if state["n"] != 31 else sys.exit(3)

    found = look(run, exiting)
    assert len(found.failed) == 5
    assert found.failed[0].error.startswith("SystemExit: 3")


def test_a_window_that_does_not_fit_is_said_and_not_counted(run: Path) -> None:
    said = str(look(run, k=[2, 3, 10], every=[1]))
    assert "k=10: not evaluated" in said
    assert f"k=10 is not evaluated: it reaches over 10 checkpoints, of {len(STEPS)}" in said
    assert "the best of 2 windows" in said
    assert "the best of" not in str(look(run, k=[2], every=[1]))


# What follows from the points

K2, K3 = StudyWindow(2), StudyWindow(3)


def of_values(
    live: dict[int, Any], averages: dict[StudyWindow, dict[int, Any]], **options: Any
) -> Study:
    def pair(value: Any) -> tuple[float, float]:
        return value if isinstance(value, tuple) else (value, value)

    points = [
        Point(step, window, {"loss": pair(value)})
        for window, curve in ((LIVE, live), *averages.items())
        for step, value in curve.items()
    ]
    return Study(points, [LIVE, *averages], **options)


def test_steps_saved_are_those_until_the_live_weights_are_as_good() -> None:
    live = {10: 4.0, 20: 3.0, 40: 1.0, 50: 2.0}
    found = of_values(live, {K2: {10: 5.0, 20: 2.5, 40: 1.5, 50: 0.5}})
    assert str(found.saved(20, K2)) == "+5"  # 2.5 is reached midway from 3 at 20 to 2 at 30
    assert str(found.saved(40, K2)) == "-5"
    assert str(found.saved(50, K2)) == ">=+0"
    assert str(found.saved(10, K2)) == "<=+0"
    mirrored = of_values(
        {step: -value for step, value in live.items()},
        {K2: {20: -2.5}},
        higher_is_better=True,
    )
    assert str(mirrored.saved(20, K2)) == "+5"
    assert "steps saved: the step at which the live weights first are as good" in str(found)


@given(st.integers(1, 400), st.integers(2, 60))
def test_an_average_that_is_the_live_weights_of_later_saves_just_that(ahead: int, n: int) -> None:
    steps = range(100, 100 * n + 1, 100)
    live = {step: 1000 / step for step in steps}
    average = {step: 1000 / (step + ahead) for step in steps}
    found = of_values(live, {K2: average})
    for step in steps:
        saved = found.saved(step, K2)
        assert saved is not None
        if step + ahead > steps[-1]:
            assert saved.bound == "at least"
            assert saved.steps == steps[-1] - step
        else:  # the live curve is read linearly, and lies below its chords
            assert saved.steps == pytest.approx(ahead, abs=100)
            assert saved.bound == ""


def test_the_target_is_reached_earlier_or_later() -> None:
    live, average = {10: 4.0, 20: 2.0, 30: 1.0}, {10: 3.0, 20: 1.0}
    said = str(of_values(live, {K2: average, K3: {30: 7.0}}))
    assert "to reach loss 1:" in said
    assert "k=2: at step 20, 10 (33%) earlier than the live weights" in said
    assert "k=3: not reached" in said
    assert "no target is given, so it is what the live weights end with" in said
    said = str(of_values(average, {K2: live}, target=3.5))
    assert "live: at step at most 10" in said
    assert "no target is given" not in said
    assert "LATER" in str(of_values(average, {K2: live}, target=2.5))


def test_of_two_halves_one_chooses_and_the_other_is_reported() -> None:
    found = of_values({10: (9.0, 9.0)}, {K2: {10: (1.0, 8.0)}, K3: {10: (2.0, 3.0)}})
    assert found.best(10) == K2
    assert found.value(10, K2) == 8.0
    assert "chosen on the first half of the evaluations" in str(found)
    assert "optimistic" not in str(found)
    once = of_values({10: 9.0}, {K2: {10: 8.0}, K3: {10: 3.0}})
    assert once.best(10) == K3
    assert "the best of 2 windows is chosen by the very evaluations" in str(once)
    assert "optimistic" in str(once)


def test_what_is_not_a_number_is_never_the_best() -> None:
    found = of_values({10: 1.0}, {K2: {10: float("nan")}, K3: {10: 5.0}})
    assert found.best(10) == K3
    assert found.saved(10, K2) is None
    assert of_values({10: 1.0}, {K2: {10: float("nan")}}).best(10) is None


# Files and command

MODULE = """
import os
import signal

import torch
from torch import nn

def make():
    return nn.Linear(3, 2)

def of_model(model):
    assert isinstance(model, nn.Linear)
    return {"loss": (model.weight.square().sum(), model.bias.sum() * 0 + 1.5), "other": 0.25}

def of_state(state):
    return float(state["weight"].sum())

def interrupted(state):
    raise KeyboardInterrupt

def terminated(state):
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("ev.py").write_text(MODULE)
    torch.manual_seed(0)
    for step in (100, 250, 300):
        torch.save(torch.nn.Linear(3, 2).state_dict(), f"run/model_step_{step}.pt")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("--last 2", ["250", "300"]),
        ("--from 200", ["250", "300"]),
        ("--to 250", ["100", "250"]),
        ("--at-least 100", ["100", "300"]),
    ],
)
def test_the_command_takes_the_same_checkpoints_as_average(
    options: str, steps: list[str], in_folder: Path
) -> None:
    command = f"study run --evaluate ev.py:of_model --model ev.py:make --k 2 {options}"
    assert main(command.split()) == 0
    rows = csv.DictReader(Path("study/study.csv").read_text().splitlines())
    live = [row["step"] for row in rows if (row["metric"], row["window"]) == ("loss", "live")]
    assert live == steps


@pytest.mark.slow
def test_the_command_prints_and_writes_what_was_found(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "study run --evaluate ev.py:of_model --model ev.py:make --k 2,3 --out found"
    assert main(command.split()) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[0] == "loss by step:"
    assert "written: found/study.csv, study.json, study.png" in said.out
    rows = list(csv.DictReader(Path("found/study.csv").read_text().splitlines()))
    loss = [row for row in rows if row["metric"] == "loss"]
    assert [(row["step"], row["window"]) for row in loss] == [
        ("100", "live"),
        ("250", "live"),
        ("250", "k=2"),
        ("300", "live"),
        ("300", "k=2"),
        ("300", "k=3"),
    ]
    assert all(row["value"] == "1.5" and float(row["value_to_choose_by"]) > 0 for row in loss)
    assert sum(row["is_best"] == "1" for row in loss) == 2
    held = json.loads(Path("found/study.json").read_text())
    assert len(held["rows"]) == len(rows) == 12
    assert held["target"] == 1.5
    assert Path("found/study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("study run", 2, "--evaluate"),
        ("study run --evaluate ev.py", 2, "as FILE.py:FUNCTION: 'ev.py'"),
        ("study run --evaluate no.py:f", 2, "no.py cannot be read: No such file"),
        ("study run --evaluate ev.py:nothing", 2, "ev.py has no function 'nothing'"),
        ("study run --evaluate bad.py:f", 2, "bad.py cannot be run: ZeroDivisionError: division"),
        ("study run --evaluate ev.py:of_state --k 0", 2, "k must be whole numbers from 1: [0]"),
        ("study run --evaluate ev.py:of_state --k two", 2, "--k takes values with commas"),
        ("study run --evaluate ev.py:of_state --k 1", 2, "no window to study"),
        ("study run --evaluate ev.py:of_state --k 7", 1, "no window fits into 3 checkpoint(s)"),
        ("study run --evaluate ev.py:of_state --weights cosin", 2, "'cosin'"),
        ("study run --evaluate ev.py:of_state --metric loss", 2, "no metric 'loss', but metric"),
        ("study run --evaluate ev.py:of_state --target nan", 2, "finite number: nan"),
        ("study run --evaluate ev.py:of_state --k 2 --out bad.py", 1, "since a file is there"),
        (
            "study run --evaluate ev.py:of_model --k 2",
            1,
            "all 5 evaluations failed, the first by A",
        ),
        ("study none --evaluate ev.py:of_state", 1, "none cannot be read: No such file"),
    ],
)
def test_what_cannot_be_studied_is_said_in_one_line(
    in_folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int, message: str
) -> None:
    Path("bad.py").write_text("1 / 0")
    assert main(arguments.split()) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not Path("study/study.csv").exists()


def test_an_interrupt_says_what_is_kept(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for function, code in (("interrupted", 130), ("terminated", 143)):
        assert main(["study", "run", "--evaluate", f"ev.py:{function}", "--k", "2"]) == code
        assert capsys.readouterr().err == (
            "interrupted: 0 of 5 evaluations are kept in study; "
            "the same command goes on from there\n"
        )


@pytest.mark.usefixtures("no_picture")
def test_two_studies_in_one_folder_are_refused(in_folder: Path) -> None:
    def nested(state: Any) -> float:
        with pytest.raises(CheckpointError, match="another study is under way in found"):
            study(["run"], "ev.py:of_state", out="found")
        return 0.0

    found = study(["run"], nested, k=[2], out="found")
    assert not found.failed


@pytest.mark.usefixtures("no_picture")
def test_a_changed_function_file_is_another_function(in_folder: Path) -> None:
    first = study(["run"], "ev.py:of_state", k=[2], out="found")
    Path("ev.py").write_text(MODULE.replace('["weight"].sum()', '["weight"].sum() + 1'))
    second = study(["run"], "ev.py:of_state", k=[2], out="found")
    for one, other in zip(first.points, second.points, strict=True):
        assert other.values["metric"][0] == pytest.approx(one.values["metric"][0] + 1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_several_processes_find_the_same(in_folder: Path) -> None:
    options: dict[str, Any] = {"k": [2, 3], "model": "ev.py:make"}
    one = study(["run"], "ev.py:of_model", **options)
    two = study(["run"], "ev.py:of_model", jobs=2, out="found", **options)
    assert str(one) == str(two)
    assert [point.values for point in one.points] == [point.values for point in two.points]
    assert len(Path("found/evaluations.jsonl").read_text().splitlines()) == len(one.points)


# A live window


def test_a_live_window_is_studied_beside_a_training_that_it_does_not_change() -> None:
    def size(state: dict[str, torch.Tensor]) -> float:
        total = float(sum(each.double().square().sum() for each in state.values()))
        state["0.weight"].zero_()  # its own
        return total

    def training(looks: Callable[[LAWA, Any], object]) -> tuple[Any, LAWA]:
        model = small_model()
        opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=5, every=2)
        for step in range(12):
            train(model, opt, range(step, step + 1))
            if step % 3 == 2:
                looks(opt, model)
        return model, opt

    live = WindowStudy(size, k=[2, 3], every=[1, 2], weights=["cosine"])
    expected = {}

    def looks(opt: LAWA, model: Any) -> None:
        live.look(opt, model)
        with pytest.raises(ValueError, match=f"step {opt.schedule.steps} was looked at before"):
            live.look(opt, model)
        expected[opt.schedule.steps, "live"] = size(
            {name: each.clone() for name, each in model.state_dict().items()}
        )
        if opt.num_snapshots >= 3:
            expected[opt.schedule.steps, "k=3 cosine"] = size(
                opt.averaged_state_dict(model, 3, weights="cosine")
            )
            weights = [0.5, 0, 0.5]
            expected[opt.schedule.steps, "k=2 every=2 cosine"] = size(
                opt.averaged_state_dict(model, 3, weights=weights)
            )

    studied = training(looks)
    assert same(everything(*studied), everything(*training(lambda opt, model: None)))
    found = values(live.result())
    assert {step for step, _ in found} == {3, 6, 9, 12}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    with studied[1].averaged(), pytest.raises(RuntimeError, match="while averaged weights"):
        live.look(studied[1], studied[0])
