"""The log of a training: no kill, full disk or damage makes it say what was not, in silence."""

import dataclasses
import math
import resource
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baselines.training.checkpoint import StorageError
from baselines.training.events import (
    EVENTS,
    Ended,
    Evaluated,
    Event,
    EventLog,
    EventReader,
    Failed,
    ModelExported,
    Started,
    ending_of,
    fold,
    latest_attempt,
    read_events,
)
from baselines.training.results import Point, Run, TrainingResult
from tests.support.comparisons import CURVES, comparison, log_of

ANY_FLOAT = st.floats(allow_nan=False)
POINTS = st.builds(
    Point,
    step=st.integers(1, 10**9),
    rst_seconds=st.floats(1e-9, 1e9),
    value=st.floats(-1e300, 1e300),
    train_loss=ANY_FLOAT,
    learning_rate=ANY_FLOAT,
    weights=st.sampled_from(["live", "averaged", None]),
)
FEW_POINTS = st.lists(POINTS, min_size=1, max_size=4, unique_by=lambda point: point.step)
LINE = {"operation": "train_step", "times": 3, "charged": True}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def results(draw: st.DrawFn) -> TrainingResult:
    """What a training may come to."""
    names = draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
    runs = tuple(
        Run(
            method=name,
            seed=7,
            points=tuple(
                draw(st.lists(POINTS, min_size=1, max_size=4, unique_by=lambda p: p.step))
            ),
            account=(
                {
                    "operation": "train_step",
                    "times": 3,
                    "seconds": draw(ANY_FLOAT),
                    "charged": True,
                },
            ),
            totals=draw(
                st.fixed_dictionaries(dict.fromkeys(("algoperf", "ntng", "mlperf"), ANY_FLOAT))
            ),
            step_seconds=draw(ANY_FLOAT),
            failure=draw(st.sampled_from([None, "the rate is too high"])),
            test=draw(st.floats(allow_nan=False)),
            share=draw(st.floats(0.01, 1.0)),
        )
        for name in names
    )
    return TrainingResult(runs, *(draw(ANY_FLOAT) for _ in range(3)))


FRESH = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@FRESH
@given(results())
def test_numbers_come_back_to_the_last_bit(tmp_path: Path, result: TrainingResult) -> None:
    folder = tmp_path / "training"
    shutil.rmtree(folder, ignore_errors=True)
    log_of(folder, result)
    assert fold(read_events(folder)) == result


def test_no_number_comes_back_as_such(tmp_path: Path) -> None:
    strange = Point(3, 0.5, math.nan, math.inf, -math.inf)
    with EventLog(tmp_path) as log:
        log.append(Evaluated(seed=0, method="lawa", point=strange))
    (event,) = read_events(tmp_path)
    assert isinstance(event, Evaluated)
    assert repr(event.point) == repr(strange)


def some_events() -> list[Event]:
    (result,) = comparison({"constant": CURVES["constant"][:1]}).trainings
    (run,) = result.runs
    return [
        Started(seed=0, shares={"constant": 1.0}),
        *(Evaluated(seed=0, method="constant", point=point) for point in run.points),
        ModelExported(seed=0, method="constant", folder="model-constant"),
        ending_of(result, 0),
    ]


@FRESH
@given(st.data())
def test_cut_at_any_byte_it_has_the_events_that_were_whole_and_goes_on(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "training"
    shutil.rmtree(folder, ignore_errors=True)
    events = some_events()
    with EventLog(folder) as log:
        for event in events:
            log.append(event)
    whole = (folder / EVENTS).read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    (folder / EVENTS).write_bytes(whole[:kept])
    survivors = events[: whole[:kept].count(b"\n")]
    assert read_events(folder) == survivors
    # Whoever reads while the next process goes on misses nothing, and has nothing twice.
    reader = EventReader(folder)
    assert reader.read() == survivors
    again = events[data.draw(st.integers(0, len(events) - 1)) :]
    with EventLog(folder) as log:
        for event in again:
            log.append(event)
    assert reader.read() == again
    assert reader.read() == []
    assert read_events(folder) == [*survivors, *again]


def test_a_training_that_went_on_tells_again_and_the_first_stands(tmp_path: Path) -> None:
    started, *points, exported, ended = some_events()
    other = points[0].model_copy(
        update={"point": dataclasses.replace(points[0].point, value=math.e), "time_milliseconds": 1}
    )
    events = [started, *points[:2], started, other, *points[1:], exported, ended]
    expected = fold([started, *points, exported, ended])
    assert expected is not None
    assert fold(events) == expected
    assert latest_attempt(events) == events[3:]
    assert fold(events[:-1]) is None


def test_a_failure_stands_until_the_training_begins_again() -> None:
    started, *points, exported, ended = some_events()
    failed = Failed(seed=0, methods=("constant",), reason="no memory")
    result = fold([started, *points[:2], failed])
    assert result is not None
    (run,) = result.runs
    assert (result.error, run.failure, run.test) == ("no memory", "no memory", math.inf)
    assert run.points == tuple(point.point for point in points[:2])
    assert fold([started, *points[:2], failed, started]) is None
    # What has ended is not undone by a process that is killed as it leaves.
    assert fold([started, *points, ended, failed]) == fold([started, *points, exported, ended])


def test_a_missing_point_is_seen() -> None:
    started, *points, exported, ended = some_events()
    assert isinstance(ended, Ended)
    with pytest.raises(ValueError, match="constant, seed 0, has 3 of 4 points"):
        fold([started, *points[1:], exported, ended])


def test_a_full_disk_is_told_and_the_log_stays_whole(tmp_path: Path) -> None:
    started, *points, _, ended = some_events()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventLog(tmp_path) as log:
        log.append(started)
        room = (tmp_path / EVENTS).stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(StorageError, match=r"events.jsonl could not be .*: File too large"):
                log.append(points[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / EVENTS).read_bytes().count(b"\n") == 1
        for event in (*points, ended):
            log.append(event)
    assert read_events(tmp_path) == [started, *points, ended]


def test_a_folder_that_is_removed_meanwhile_is_told_and_not_made_again(tmp_path: Path) -> None:
    started, *_ = some_events()
    folder = tmp_path / "comparison" / "training"
    folder.parent.mkdir()
    with EventLog(folder) as log:
        log.append(started)
        shutil.rmtree(folder.parent)
        with pytest.raises(StorageError, match="its folder was removed while the comparison ran"):
            log.append(started)
    with pytest.raises(StorageError, match="its folder was removed"):
        EventLog(folder).__enter__()
    assert not folder.parent.exists()


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-of-mallory")
    said = "401 from http://me:word@host/, with t0ken-of-mallory"
    with EventLog(tmp_path) as log:
        log.append(Failed(seed=0, methods=("lawa",), reason=said))
        log.append(ModelExported(seed=0, method="lawa", reason=said))
    text = (tmp_path / EVENTS).read_text()
    assert text.count("401 from http://host/, with ***") == 2


@pytest.mark.parametrize("folder", ["../../../home", "model-/etc", "/etc", "model-..", ""])
def test_a_model_lies_in_the_folder_of_its_training(folder: str, tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append(ModelExported(seed=0, method="lawa", folder="model-lawa"))
    path = tmp_path / EVENTS
    path.write_text(path.read_text().replace("model-lawa", folder))
    with pytest.raises(ValueError, match="a line is no event"):
        read_events(tmp_path)
