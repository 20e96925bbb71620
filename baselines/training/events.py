"""One event log a training: what was begun, evaluated, exported and ended, a line of JSON each.

Whoever trains appends to it: this process, one beside it, or one on a cluster. Results are a fold
over it, and the screen and MLflow are readers of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from baselines.training.checkpoint import storage_errors
from baselines.training.measurement import Measurement
from baselines.training.results import Point, Run, TrainingResult, check_whole
from baselines.training.rounding import Rounded
from timing import Policy
from timing.secrets import hide

EVENTS = "events.jsonl"

# What is said of an error may quote an address with its password.
Reason = Annotated[str, AfterValidator(hide)]


def now_milliseconds() -> int:
    """Return the time since 1970."""
    return time.time_ns() // 1_000_000


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    time_milliseconds: int = Field(default_factory=now_milliseconds)
    seed: int


class Started(_Event):
    """A training begins, or goes on from a checkpoint: then it tells of its points again.

    Attributes:
        shares: of the budget, by the names of the methods that follow it.
    """

    event: Literal["started"] = "started"
    shares: dict[str, float]


class Evaluated(_Event):
    """A method was evaluated."""

    event: Literal["evaluated"] = "evaluated"
    method: str
    point: Point


class ModelExported(_Event):
    """A method's model was written, or could not be.

    Attributes:
        method: whose it is.
        folder: in that of the training; None where there is none.
        reason: why there is none.
    """

    event: Literal["model_exported"] = "model_exported"
    method: str
    folder: Annotated[str, Field(pattern=r"^model-[A-Za-z0-9=-]+$")] | None = None
    reason: Reason | None = None


class RunEnd(BaseModel):
    """How a run has ended: what `Run` has, and of its points their number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    points: int
    account: tuple[Mapping[str, Any], ...]
    totals: dict[Policy, float]
    step_seconds: float
    failure: str | None
    test: float
    share: float
    read_test: dict[str, float] = Field(default_factory=dict)
    rounded: dict[str, Rounded] = Field(default_factory=dict)


class Ended(_Event):
    """A training has ended, with what `TrainingResult` has of it."""

    event: Literal["ended"] = "ended"
    runs: tuple[RunEnd, ...]
    rst_seconds: float
    measured_seconds: float
    other_cores: float
    measurement: Measurement | None = None


class Failed(_Event):
    """A training was cut off by an error, or its process was: nothing of it is kept."""

    event: Literal["failed"] = "failed"
    methods: tuple[str, ...]
    reason: Reason


_OF_A_TRAINING = ("rst_seconds", "measured_seconds", "other_cores", "measurement")
Event = Started | Evaluated | ModelExported | Ended | Failed
OnEvent = Callable[[Event], None]
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def ignore(event: Event) -> None:
    """Do nothing with an event."""


def ending_of(result: TrainingResult, seed: int) -> Ended | Failed:
    """Return the event that a training ends with."""
    if result.error is not None:
        reasons = (run.failure for run in result.runs if run.failure)
        methods = tuple(run.method for run in result.runs)
        return Failed(seed=seed, methods=methods, reason=next(reasons, result.error))
    ends = (
        RunEnd.model_validate(
            {name: getattr(run, name) for name in RunEnd.model_fields} | {"points": len(run.points)}
        )
        for run in result.runs
    )
    own = {name: getattr(result, name) for name in _OF_A_TRAINING}
    return Ended(seed=seed, runs=tuple(ends), **own)


def end_in(events: Sequence[Event]) -> Ended | Failed | None:
    """Return how a training has ended; None if it has not, or has begun again since it failed."""
    end: Failed | None = None
    for event in events:
        match event:
            case Ended():
                return event
            case Failed():
                end = event
            case Started():
                end = None
    return end


def methods_in(events: Sequence[Event]) -> list[str]:
    """Return the names of the methods that follow a training, once it has begun."""
    return list(next((event.shares for event in events if isinstance(event, Started)), {}))


def fold(events: Sequence[Event]) -> TrainingResult | None:
    """Return what came of a training: its result, or with `error` why it failed; None before that.

    One that went on has told of its points again, and of each the first stands.

    Raises:
        ValueError: it has ended, and a point is missing or a run is not whole.
    """
    points: dict[str, dict[int, Point]] = {}
    shares: dict[str, float] = {}
    for event in events:
        match event:
            case Started():
                shares |= event.shares
            case Evaluated():
                points.setdefault(event.method, {}).setdefault(event.point.step, event.point)
    match end_in(events):
        case Ended() as ended:
            return _ended(ended, points)
        case Failed() as failed:
            return _failed(failed, points, shares)
    return None


def _failed(
    event: Failed, points: Mapping[str, Mapping[int, Point]], shares: Mapping[str, float]
) -> TrainingResult:
    runs = (
        Run(
            method=name,
            seed=event.seed,
            points=tuple(points.get(name, {}).values()),
            account=(),
            totals={},
            step_seconds=0.0,
            failure=event.reason,
            share=shares.get(name, 1.0),
        )
        for name in event.methods
    )
    return TrainingResult(tuple(runs), 0.0, 0.0, 0.0, event.reason)


def _ended(event: Ended, points: Mapping[str, Mapping[int, Point]]) -> TrainingResult:
    runs = []
    for end in event.runs:
        found = tuple(points.get(end.method, {}).values())
        if len(found) != end.points:
            raise ValueError(
                f"{end.method}, seed {event.seed}, has {len(found)} of {end.points} points"
            )
        fields = {name: getattr(end, name) for name in RunEnd.model_fields}
        runs.append(Run(**{**fields, "seed": event.seed, "points": found}))
        check_whole(runs[-1])
    own = {name: getattr(event, name) for name in _OF_A_TRAINING}
    return TrainingResult(tuple(runs), **own)


def latest_attempt(events: Sequence[Event]) -> Sequence[Event]:
    """Return the events from the latest start on, which tell of all points."""
    starts = [place for place, event in enumerate(events) if isinstance(event, Started)]
    return events[starts[-1] :] if starts else events


class EventLog:
    """Appends events to the log of a training; its folder is made, in one that is there.

    A line that a killed process left unfinished is taken off first, so that it spoils no other.

    Raises:
        StorageError: on entering, or by `append`: it cannot be written. What was written is whole.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS

    def __enter__(self) -> Self:
        with storage_errors(self._path):
            self._path.parent.mkdir(exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._file, self._path.read_bytes().rfind(b"\n") + 1)
        return self

    def append(self, event: Event) -> None:
        """Append an event; the end of a training is on the disk when this returns."""
        # Pydantic's own JSON has no infinity in what is nested.
        unwritten = f"{json.dumps(event.model_dump())}\n".encode()
        with storage_errors(self._path):
            before = os.fstat(self._file)
            if not before.st_nlink:
                raise FileNotFoundError
            try:
                while unwritten:
                    unwritten = unwritten[os.write(self._file, unwritten) :]
                if isinstance(event, Ended):
                    os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before.st_size)
                raise

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)


class EventReader:
    """Reads the events of a training's folder as they come, each once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._offset_bytes = 0

    def read(self) -> list[Event]:
        """Return the events since the last time; a line that is still being written is left.

        Raises:
            ValueError: a line is no event.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset_bytes)
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(_EVENT.validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise ValueError(f"a line is no event: {where}: {first['msg']}") from error
        self._offset_bytes += sum(len(line) + 1 for line in lines)
        return found


def read_events(folder: Path) -> list[Event]:
    """Return all events of a training; raises ValueError where a line is no event."""
    return EventReader(folder).read()
