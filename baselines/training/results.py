"""What came of a training: points, runs and their training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from baselines.training.measurement import Measurement
from baselines.training.rounding import FLOAT, Rounded
from timing import POLICIES, Policy

Weights = Literal["live", "averaged"]


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: of the recipe, so far. Each updates the weights at most once.
        rst_seconds: reference seconds charged so far.
        value: the workload's metric on the validation part.
        train_loss: mean training loss since the point before.
        learning_rate: of the next step.
        weights: which were evaluated: those that are trained, or others, averaged; None where it is
            not known, as in the results of earlier versions.
        updates: of the weights, so far: as many as steps, unless some train nothing. None as above.
        read: the same metric of rounded copies of these weights, by the name of the rounding;
            infinite where it is no finite number. Empty if they are read in float alone.
    """

    step: int
    rst_seconds: float
    value: float
    train_loss: float
    learning_rate: float
    weights: Weights | None = None
    updates: int | None = None
    read: Mapping[str, float] = field(default_factory=dict)

    def value_as(self, reading: str) -> float:
        """The metric of the weights read so; no number where it is not finite of rounded ones."""
        return self.value if reading == FLOAT else _finite_or_nan(self.read[reading])


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        method: its name.
        seed: of initial weights and batches.
        points: the evaluations; the last is at the end of the budget.
        account: its lines, one an operation, as `Account.lines` has them.
        totals: reference seconds that each policy would have charged for it.
        step_seconds: the most that one step of this method costs, in reference seconds.
        failure: why it ended before its budget; None if it did not.
        test: the metric on the test part, of the weights it ends with; infinite if it was not read.
        share: of the budget, that this method is given.
        read_test: the metric on the test part of rounded copies, as `Point.read` has it.
        rounded: what each rounding did to the weights it ends with, by its name.
    """

    method: str
    seed: int
    points: tuple[Point, ...]
    account: tuple[Mapping[str, Any], ...]
    totals: Mapping[Policy, float]
    step_seconds: float
    failure: str | None
    test: float = math.inf
    share: float = field(kw_only=True)
    read_test: Mapping[str, float] = field(kw_only=True, default_factory=dict)
    rounded: Mapping[str, Rounded] = field(kw_only=True, default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of the recipe to the last evaluation."""
        return self.points[-1].step if self.points else 0

    @property
    def updates(self) -> int | None:
        """Updates of the weights to the last evaluation; None where it is not known."""
        return self.points[-1].updates if self.points else 0

    @property
    def rst_seconds(self) -> float:
        """Reference seconds charged to the last evaluation."""
        return self.points[-1].rst_seconds if self.points else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Count each operation."""
        return {line["operation"]: line["times"] for line in self.account}

    @property
    def final(self) -> float:
        """The metric at the end of the budget; infinite if the run failed."""
        return self.final_as(FLOAT)

    def final_as(self, reading: str) -> float:
        """The metric at the end of the budget, of the weights read so.

        Infinite if the run failed; NaN if the rounded weights have no finite metric.
        """
        return math.inf if self.failure or not self.points else self.points[-1].value_as(reading)

    def test_as(self, reading: str) -> float:
        """The same on the test part; infinite too if that was not read."""
        if reading == FLOAT or self.failure:
            return self.test
        return _finite_or_nan(self.read_test[reading]) if self.read_test else math.inf

    def value_at(self, rst_seconds: float, reading: str = FLOAT) -> float:
        """The metric at the latest evaluation by then, of the weights read so.

        Infinite if there is none, or the run failed; NaN as of `final_as`.
        """
        values = [
            point.value_as(reading) for point in self.points if point.rst_seconds <= rst_seconds
        ]
        return values[-1] if values and not self.failure else math.inf

    def rst_to(self, target: float, badness: Callable[[float], float]) -> float:
        """Reference seconds charged until the metric first reached the target; infinite if never.

        Known to the grid of evaluations, which is the same for all methods. What is no finite
        number is no target, and reaches none.

        Args:
            target: a value of the metric.
            badness: of the workload, which says what is better.
        """
        most = badness(target)
        if math.isinf(most):
            return math.inf
        return next((p.rst_seconds for p in self.points if badness(p.value) <= most), math.inf)


@dataclass(frozen=True)
class TrainingResult:
    """Runs that followed one training together, and what it took here.

    Attributes:
        runs: one a method.
        rst_seconds: reference seconds of all that ran but evaluations, a shared step once.
        measured_seconds: wall time of the same, on this machine.
        other_cores: cores that other processes kept busy meanwhile.
        measurement: what else was measured of it; None if nothing is known, as of a failed one.
        error: what was raised, if something was: all its runs that had not ended failed of it.
    """

    runs: tuple[Run, ...]
    rst_seconds: float
    measured_seconds: float
    other_cores: float
    error: str | None = None
    measurement: Measurement | None = None


def read_points(saved: object) -> list[Point]:
    """Return points that `asdict` made dictionaries of.

    Raises:
        ValueError: they are none.
    """
    try:
        points = _POINTS.validate_python(saved)
    except ValidationError as error:
        raise ValueError(f"no points: {error.errors()[0]['msg']}") from error
    # A field with a default would be filled in without a word. Earlier versions had no readings.
    given = saved if isinstance(saved, list) else []
    if [asdict(point) for point in points] != [{"read": {}, **point} for point in given]:
        raise ValueError("no points: one lacks a field")
    return points


def check_whole(run: Run) -> None:
    """Refuse a run that ended well and lacks something that such a run has.

    Raises:
        ValueError: it does.
    """
    whole = (
        math.isfinite(run.final)
        and all(point.rst_seconds > 0 for point in run.points)
        and run.totals.keys() == set(POLICIES)
        and all(line.keys() >= _LINE for line in run.account)
        and all(point.read.keys() == run.rounded.keys() for point in run.points)
        and (not run.read_test or run.read_test.keys() == run.rounded.keys())
    )
    if run.failure is None and not whole:
        raise ValueError(f"{run.method}, seed {run.seed}, is not whole")


def _finite_or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan


_LINE = {"operation", "times", "seconds", "charged"}
_POINTS = TypeAdapter(list[Point])
