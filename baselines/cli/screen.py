"""Show the events of trainings while they run: called with each of them."""

from __future__ import annotations

import math

from baselines.cli.console import say
from baselines.cli.progress import Course
from baselines.experiment.plan import Plan
from baselines.training.events import Ended, Evaluated, Event, Failed, Started
from baselines.training.measurement import Measurement
from baselines.training.readings import NOT_FINITE
from baselines.training.results import Point


class Screen:
    """Progress of a comparison: called with its events."""

    def __init__(self, plan: Plan, course: Course) -> None:
        self._course = course
        self._budget = plan.budget.seconds
        self._total = len(plan.methods) * len(plan.seeds)
        self._done: dict[tuple[str, int], float] = {}
        self._latest: dict[tuple[str, int], Point] = {}

    def __call__(self, event: Event) -> None:
        """Move on, and print what came of each run."""
        match event:
            case Evaluated():
                self._latest[event.method, event.seed] = event.point
                self._show(event.method, event.seed, event.point.rst_seconds / self._budget)
            case Ended():
                for run in event.runs:
                    self._say_of(run.method, event.seed, run.failure)
                several = len(event.runs) > 1
                theirs = f" with the own work of its {len(event.runs)} methods" if several else ""
                say(
                    f"  that training took {event.measured_seconds:.1f} s here, or "
                    f"{event.rst_seconds:.1f} s RST{theirs}{_joules(event.measurement)}"
                )
            case Failed():
                for method in event.methods:
                    self._say_of(method, event.seed, event.reason)

    def _say_of(self, method: str, seed: int, failure: str | None) -> None:
        self._show(method, seed, 1.0)
        point = self._latest.get((method, seed))
        steps, rst_seconds = (point.step, point.rst_seconds) if point else (0, 0.0)
        updates = steps if point is None or point.updates is None else point.updates
        of = "" if updates == steps else f" with {updates} updates"
        after = f"after {steps} steps{of}, {rst_seconds:.3f} s RST"
        value = point.value if point else math.inf
        end = f"FAILED {after}: {failure}" if failure else f"{value:.4f}{_read(point)} {after}"
        say(f"{method}, seed {seed}: {end}")

    def _show(self, method: str, seed: int, fraction: float) -> None:
        self._done[method, seed] = fraction
        done = math.fsum(self._done.values()) / self._total
        self._course.update(min(1.0, done), f"{method}, seed {seed}")


def _read(point: Point | None) -> str:
    """Return what the point has of rounded weights, in brackets."""
    found = point.read.items() if point else ()
    values = ((name, value, math.isfinite(value)) for name, value in found)
    said = [f"{name} {f'{value:.4f}' if known else NOT_FINITE}" for name, value, known in values]
    return f" ({', '.join(said)})" if said else ""


def _joules(measurement: Measurement | None) -> str:
    joules = measurement and measurement.gpu_joules
    return "" if joules is None else f", and {joules:.0f} J of the GPU"


class TuningScreen:
    """Progress of the trials: called with their events."""

    def __init__(self, plan: Plan, course: Course) -> None:
        self._course = course
        self._total = len(plan.methods) * plan.trials
        self._done = 0

    def __call__(self, event: Event) -> None:
        """Move on."""
        match event:
            case Started():
                first, *_ = event.shares
                self._course.update(self._done / self._total, first)
            case Ended():
                self._done += len(event.runs)
            case Failed():
                self._done += len(event.methods)
