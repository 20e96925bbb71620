"""The operations of a training that ran somewhere: how often each ran, and its median there.

timer = StepTimer()
...                      # with timer("train_step"): around each operation of a loop of yours
run = MeasuredRun.of(timer, workload={"model": "mlp", "batch": 64})
run.write("run.json")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from timing.calibration.environment import Machine, this_machine
from timing.calibration.profile import Signature, read_json
from timing.calibration.row import LARGEST_COUNT, MOST_SECONDS
from timing.clocks.step_timer import StepTimer


class RunError(ValueError):
    """A measured run that cannot be used, with the reason and what to do."""


class MeasuredOperation(BaseModel):
    """One operation of a run.

    Attributes:
        count: how often it ran, the warm-up included.
        median_seconds: of a run of it there; None where that was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    count: int = Field(ge=1, le=LARGEST_COUNT)
    median_seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] | None = None


class MeasuredRun(BaseModel):
    """A training by its operations.

    Attributes:
        version: of this document's format.
        machine: where it ran; None where it is not known.
        workload: what the costs depend on, as in a profile: model, batch, shapes, dtype, optimizer.
        operations: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    machine: Machine | None = None
    workload: Signature
    operations: dict[str, MeasuredOperation] = Field(min_length=1)

    @classmethod
    def of(cls, timer: StepTimer, workload: Mapping[str, str | int | float]) -> Self:
        """Return what a timer saw, whose phases are named as operations; waits for the GPU.

        Raises:
            RunError: it saw nothing.
        """
        phases = timer.phases()
        found = {
            name: MeasuredOperation(count=times, median_seconds=phase.median_seconds or None)
            for name, phase in phases.items()
            if (times := phase.count + phase.warm_up_count)
        }
        if not found:
            raise RunError("the timer saw no pass of any phase: time operations by their names")
        return cls(machine=this_machine(), workload=dict(workload), operations=found)

    def write(self, path: str | Path) -> None:
        """Write the document as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a document.

        Raises:
            RunError: it cannot be read, or is no measured run.
        """
        document = read_json(path, "measured run", RunError)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise RunError(
                f"{path} is no measured run: {where}: {first['msg']} (MeasuredRun.of(timer, "
                "workload=...).write(FILE) makes one)"
            ) from error
