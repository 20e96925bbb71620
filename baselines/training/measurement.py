"""What a training took where it ran, beside its RST: nothing here enters that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from timing import GpuUse, MeasuredRun, Phase, this_machine
from timing.mapping.measured_run import MeasuredOperation

# Of what is read from a file; it may come from anywhere.
Count = Annotated[int, Field(ge=0)]


def kind_of(operations: Iterable[str]) -> str:
    """Return the name of a pass in which these operations ran, such as "train_step, collect"."""
    counts = Counter(operations)
    return ", ".join(name if times == 1 else f"{times} {name}" for name, times in counts.items())


@dataclass(frozen=True)
class Timed:
    """Passes in which the same operations ran.

    Attributes:
        operations: how often each ran in a pass.
        phase: what the passes took.
    """

    operations: Mapping[str, Count]
    phase: Phase


@dataclass(frozen=True)
class Measurement:
    """What a training took here.

    Attributes:
        operations: how often each ran in the measured seconds: all but evaluations.
        cpu_seconds: processor time of the process in the measured seconds, all threads together.
        ranks: that trained together; seconds are those of the first.
        processes: that trained one after another, where it was cut off and went on. Seconds are
            of all of them; phases, GPUs and joules of the latest alone.
        phases: by what ran in a pass.
        gpus: what each device that it used did from begin to end, evaluations included.
        host_joules: of all processors of the host, whoever used them; None if not told.
        unavailable: what is not measured, and why.
    """

    operations: Mapping[str, Count]
    cpu_seconds: float
    ranks: int
    processes: int
    phases: Mapping[str, Timed]
    gpus: tuple[GpuUse, ...]
    host_joules: float | None
    unavailable: tuple[str, ...]

    @property
    def gpu_joules(self) -> float | None:
        """Joules of all devices from begin to end; None where one of them is not told."""
        return self._of_all_gpus(use.energy_joules for use in self.gpus)

    @property
    def gpu_active_seconds(self) -> float | None:
        """Active seconds of all devices together; None where one of them is not told."""
        active = (use.active for use in self.gpus)
        return self._of_all_gpus(each.gpu_active_seconds if each else None for each in active)

    def _of_all_gpus(self, values: Iterable[float | None]) -> float | None:
        """Return the sum over all devices; None where one is not told, or what came before."""
        told = [value for value in values if value is not None]
        is_whole = self.processes == 1 and len(told) == len(self.gpus) > 0
        return sum(told) if is_whole else None

    @property
    def first_seconds(self) -> float:
        """Seconds by which first passes took longer than as many of the median."""
        return sum(
            max(0.0, phase.warm_up_seconds - phase.warm_up_count * (phase.median_seconds or 0.0))
            for phase in (timed.phase for timed in self.phases.values())
        )

    def as_run(self, workload: Mapping[str, str | int | float]) -> MeasuredRun:
        """Return its operations as `timing.map_run` takes them."""
        medians = self.operation_seconds
        return MeasuredRun(
            machine=this_machine(),
            workload=dict(workload),
            operations={
                name: MeasuredOperation(count=times, median_seconds=medians.get(name))
                for name, times in self.operations.items()
            },
        )

    @property
    def operation_seconds(self) -> dict[str, float]:
        """Median seconds of operations: of passes in which one ran alone, or that differ in one.

        What passes cannot tell apart is left out.
        """
        found: dict[str, float] = {}
        timed = [each for each in self.phases.values() if each.phase.median_seconds is not None]
        # The surest first: of passes that ran alone, then of those with most to tell.
        timed.sort(key=lambda each: (len(each.operations), -each.phase.count))
        for one in timed:
            for other in (None, *timed):
                less = Counter(other.operations) if other else Counter[str]()
                more = Counter(one.operations)
                if any(times > more[name] for name, times in less.items()):
                    continue
                more -= less
                if len(more) != 1 or more.total() != 1:
                    continue
                (name,) = more
                seconds = _seconds(one) - (_seconds(other) if other else 0.0)
                if seconds > 0:
                    found.setdefault(name, seconds)
        return found


def _seconds(timed: Timed) -> float:
    assert timed.phase.median_seconds is not None
    return timed.phase.median_seconds
