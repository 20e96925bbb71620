"""What a study found: metrics by step and window, the best window, and the steps it saves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lawa_opt.messages import ArgumentError
from lawa_opt.studying.evaluation import Halves
from lawa_opt.studying.windows import LIVE, StudyWindow

DEFINITION = (
    "steps saved: the step at which the live weights first are as good as this average, read "
    "linearly between checkpoints, less the step of the average"
)


@dataclass(frozen=True)
class Point:
    """One evaluation: of a window that ends at a step.

    Attributes:
        values: the metrics by name; empty if the evaluation failed.
        error: why it failed.
    """

    step: int
    window: StudyWindow
    values: dict[str, Halves] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Saved:
    """Steps saved, exactly or "at least" or "at most", where live weights give only a bound."""

    steps: float
    bound: Literal["", "at least", "at most"] = ""

    def __str__(self) -> str:
        mark = {"": "", "at least": ">=", "at most": "<="}[self.bound]
        return f"{mark}{self.steps:+.0f}"


class Study:
    """All evaluations of a study, and what follows from them.

    Args:
        points: in any order.
        windows: that were asked for, the live weights first.
        unit: what the steps count, "step", "epoch" or "place".
        metric: the name of the metric that decides; by default the first.
        higher_is_better: of that metric.
        target: its value to reach; by default the last of the live weights.
        notes: what else the reader should know.

    Raises:
        ValueError: there is no such metric, or the target is no number.
    """

    def __init__(
        self,
        points: Iterable[Point],
        windows: Sequence[StudyWindow],
        *,
        unit: str = "step",
        metric: str | None = None,
        higher_is_better: bool = False,
        target: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        refuse_target(target)
        self.points = sorted(points, key=lambda point: (point.step, windows.index(point.window)))
        self.windows = list(windows)
        self.unit = unit
        self.higher_is_better = higher_is_better
        self.steps = sorted({point.step for point in self.points})
        self.metrics = list(dict.fromkeys(name for p in self.points for name in p.values))
        if metric is not None and self.metrics and metric not in self.metrics:
            raise no_metric(metric, self.metrics)
        self.metric = metric or next(iter(self.metrics), "metric")
        self._values = {
            (point.step, point.window): point.values[self.metric]
            for point in self.points
            if self.metric in point.values
        }
        # NaN differs from itself, and is one number all the same.
        self.has_halves = any(a != b and (a == a or b == b) for a, b in self._values.values())
        self.failed = [point for point in self.points if point.error]
        ends = [step for step in self.steps if math.isfinite(self.value(step, LIVE))]
        end = self.value(ends[-1], LIVE) if ends else math.nan
        self.target = end if target is None else target
        no_end = ends and ends[-1] != self.steps[-1]
        at = f", at {unit} {ends[-1]} where they last have a number" if no_end else ""
        given = f"no target is given, so it is what the live weights end with{at}"
        said = [] if target is not None else [given]
        self.notes = [*notes, *self._own_notes(), *said, *self._notes_on_failures()]

    def _own_notes(self) -> list[str]:
        averages = len({window for _, window in self._values} - {LIVE})
        if self.has_halves:
            looks = f"the best of {averages} windows is chosen on the first half of the evaluations"
            looks += ", and what is shown is of the second"
        else:
            looks = f"the best of {averages} windows is chosen by the very evaluations that are "
            looks += "shown, so what it gains is optimistic: return two halves to correct that"
        return [DEFINITION.replace("step", self.unit), *([looks] if averages > 1 else [])]

    def _notes_on_failures(self) -> list[str]:
        notes = []
        if self.failed:
            first = self.failed[0]
            notes.append(
                f"{len(self.failed)} of {len(self.points)} evaluations failed, the first at "
                f"{self.unit} {first.step} of {first.window}: {first.error}"
            )
        odd = [point for point in self.points if not point.error and not self._is_finite(point)]
        if odd:
            pair = odd[0].values.get(self.metric)
            was = "missing" if pair is None else " and ".join(dict.fromkeys(map(str, pair)))
            where = f"the first at {self.unit} {odd[0].step} of {odd[0].window}: {was}"
            which = f"{len(odd)} of {len(self.points)} evaluations give no finite {self.metric}"
            notes.append(f"{which} and count for nothing, {where}")
        return notes

    def _is_finite(self, point: Point) -> bool:
        return all(map(math.isfinite, point.values.get(self.metric, (math.nan,))))

    def value(self, step: int, window: StudyWindow, half: int = 1) -> float:
        """Return the metric; of two halves, that to report (1) or to choose by (0). NaN if none."""
        return self._values.get((step, window), (math.nan, math.nan))[half]

    def _cost(self, step: int, window: StudyWindow, half: int = 1) -> float:
        value = self.value(step, window, half)
        if not math.isfinite(value):
            return math.nan  # of weights that diverged there is nothing to compare
        return -value if self.higher_is_better else value

    def best(self, step: int) -> StudyWindow | None:
        """Return the average with the best metric at a step, of the half to choose by."""
        costs = {window: self._cost(step, window, 0) for window in self.windows[1:]}
        known = [window for window, cost in costs.items() if not math.isnan(cost)]
        return min(known, key=costs.__getitem__, default=None)

    def reached(self, window: StudyWindow, value: float | None = None) -> Saved | None:
        """Return the step at which a window first is as good as a value, by default the target.

        It is at most the first step, where it is as good there already, and None if it never is.
        """
        goal = self.target if value is None else value
        goal = -goal if self.higher_is_better else goal
        before: tuple[float, float] | None = None
        for step in self.steps:
            cost = self._cost(step, window)
            if cost <= goal:
                if before is None:
                    return Saved(step, "at most")
                share = (before[1] - goal) / (before[1] - cost)
                return Saved(before[0] + share * (step - before[0]))
            if not math.isnan(cost):
                before = (step, cost)
        return None

    def saved(self, step: int, window: StudyWindow) -> Saved | None:
        """Return the steps that an average saves at a step (see `DEFINITION`); None if unknown.

        They are negative where the live weights were as good before. Of live weights that come to
        be as good only after the last step, "at least"; and before the first one, "at most".
        """
        value = self.value(step, window)
        if not math.isfinite(value) or math.isnan(self.target):
            return None
        live = self.reached(LIVE, value)
        if live is None:
            return Saved(self.steps[-1] - step, "at least")
        return Saved(live.steps - step, live.bound)

    def __str__(self) -> str:
        shown = [window for window in self.windows if any(w == window for _, w in self._values)]
        rows = [[self.unit, *map(str, shown), "best", f"{self.unit}s saved"]]
        for step in self.steps:
            best = self.best(step)
            at = [self._values.get((step, window)) for window in shown]
            cells = ["-" if pair is None else f"{pair[1]:.5g}" for pair in at]
            saved = best and self.saved(step, best)
            rows.append([str(step), *cells, str(best or "-"), str(saved or "-")])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([f"{self.metric} by {self.unit}:", *lines, *self.to_target(), *self.notes])

    def to_target(self) -> list[str]:
        """Return a line for each window: when it reaches the target, and how much earlier."""
        live = self.reached(LIVE)
        lines = [f"to reach {self.metric} {_shown(self.target)}:"]
        for window in self.windows:
            at = self.reached(window)
            if at is None:
                is_known = any(each == window for _, each in self._values)
                lines.append(f"  {window}: {'not reached' if is_known else 'not evaluated'}")
                continue
            line = f"  {window}: at {self.unit} {at.bound and at.bound + ' '}{at.steps:.0f}"
            if live is not None and not window.is_live and not at.bound:
                early = live.steps - at.steps
                share = f"{abs(early) / live.steps:.0%}" if live.steps else "-"
                what = "earlier" if early >= 0 else "LATER"
                line += f", {abs(early):.0f} ({share}) {what} than the live weights"
            lines.append(line)
        return lines


def refuse_target(target: float | None) -> None:
    """Refuse a target that no metric reaches."""
    if target is not None and not math.isfinite(target):
        raise ArgumentError(f"target must be a finite number: {target}")


def no_metric(wanted: str, known: Iterable[str]) -> ArgumentError:
    """Return the refusal of a metric that the function does not return."""
    return ArgumentError(f"the function returns no metric {wanted!r}, but {', '.join(known)}")


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.5g}"
