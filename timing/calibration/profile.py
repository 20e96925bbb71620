"""What each operation costs on the reference machine, as a checked JSON document."""

from __future__ import annotations

import json
import math
import os
import reprlib
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from timing.calibration.disturbance import Noise
from timing.calibration.machine import Machine
from timing.calibration.pace import is_slowed
from timing.calibration.software import Software
from timing.rst.account import FEMTOSECONDS

# Above this, single timings are too far from what a real loop takes to be scaled to it.
LARGEST_CLOSURE = 0.05

# Beyond these no profile is of anything that ran, and sums and ratios leave what floats can hold.
LEAST_SECONDS, MOST_SECONDS = 1 / FEMTOSECONDS, 1e9
MOST_PASSES = 10**9
LARGEST_COUNT = 10**15
LARGEST_NUMBER = 1e30
MOST_BYTES = 2**26

FLOPS = "flops_per_step"


def check_signature(signature: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """Return a copy of a signature whose numbers are all of a sensible size.

    Raises:
        ValueError: a number in it is not finite, or is larger than any that means something.
    """
    for key, value in signature.items():
        if not isinstance(value, str) and not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{key} must be a number of up to {LARGEST_NUMBER:g} either way")
    return dict(signature)


def _that_an_account_can_count(seconds: float) -> float:
    if seconds < LEAST_SECONDS:
        raise ValueError(f"must be {LEAST_SECONDS:g} s or more, the least that an account counts")
    return seconds


Signature = Annotated[dict[str, str | int | float], AfterValidator(check_signature)]


class ProfileError(ValueError):
    """A profile that cannot be used, with the reason and what to do."""


class Cost(BaseModel):
    """Seconds that one run of an operation takes on the reference machine.

    `spread_seconds` is the interquartile range of the `samples` single runs behind the median; over
    several processes it is their median spread, and `samples` their sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median_seconds: Annotated[
        float, Field(gt=0, le=MOST_SECONDS), AfterValidator(_that_an_account_can_count)
    ]
    spread_seconds: float = Field(ge=0, le=MOST_SECONDS)
    samples: int = Field(ge=1, le=LARGEST_COUNT)


class Calibration(BaseModel):
    """What one process measured.

    Attributes:
        costs: by operation.
        closure: what the medians of a real mixed loop add up to, over its measured seconds, minus
            one. Below zero on a machine whose timings are skewed, for there medians are below
            means, and where what ran before makes an operation slower now and then.
        noise: what disturbed the measurement.
        pace_seconds: what the fixed work of `timing.calibration.pace` took meanwhile; None if it
            was not asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    costs: dict[str, Cost] = Field(min_length=1)
    closure: float = Field(gt=-1, le=LARGEST_NUMBER)
    noise: Noise
    pace_seconds: float | None = Field(default=None, ge=0)

    @property
    def seconds(self) -> dict[str, float]:
        """Charged seconds by operation, as this process alone gives them: the medians."""
        return {name: cost.median_seconds for name, cost in self.costs.items()}

    def faults(self, known_pace: float | None = None) -> tuple[str, ...]:
        """Why this process should not be part of a profile; empty if it may be.

        Args:
            known_pace: `pace_seconds` of the fastest process, if there is any.
        """
        found = list(self.noise.reasons)
        if known_pace and self.pace_seconds and is_slowed(self.pace_seconds, known_pace):
            found.append(
                f"the processor took {self.pace_seconds / known_pace:.2f} times as long as in the "
                "fastest process, for the same work"
            )
        if abs(self.closure) > LARGEST_CLOSURE:
            found.append(f"its closure is {self.closure:+.1%}")
        return tuple(found)


class Profile(BaseModel):
    """The reference: a machine, a workload, and the cost of each operation there.

    Charged for an operation is its median, which outliers do not move. How far the medians are from
    adding up to a real loop is stated, and not corrected for: what it comes from, a rare operation
    or what a rare one leaves behind it, is none of the others' cost.

    What is stated of all processes together follows from what is kept of each, and is checked
    against it on reading: a number edited by hand, or one with a digit missing, is refused.

    Attributes:
        version: of this document's format.
        created: when it was measured.
        machine: the reference machine.
        software: what ran there, and how it was set.
        workload: what the costs depend on: model, batch, shapes, dtype, optimizer, k. It may hold
            `flops_per_step`, a whole number that is the same on every machine and so a cross-check
            beside the time; it is compared where both sides have it.
        every: in how many passes through the mixed loop each operation ran once.
        costs: by operation: the median of the processes' medians, the median of their spreads, and
            all their samples.
        closure: median over the processes.
        process_count: fresh processes behind it.
        processes: what each of them measured.
        discarded: processes left out because they were disturbed, or did not close.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[2] = 2
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    machine: Machine
    software: Software
    workload: Signature
    every: dict[str, Annotated[int, Field(le=MOST_PASSES)]]
    costs: dict[str, Cost] = Field(min_length=1)
    closure: float = Field(gt=-1, le=LARGEST_NUMBER)
    process_count: int
    processes: tuple[Calibration, ...] = Field(min_length=1)
    discarded: int = Field(ge=0)

    @classmethod
    def of(
        cls,
        machine: Machine,
        software: Software,
        workload: Signature,
        every: Mapping[str, int],
        processes: Sequence[Calibration],
        discarded: int = 0,
    ) -> Self:
        """The profile that these processes bear out."""
        return cls(
            machine=machine,
            software=software,
            workload=workload,
            every=dict(every),
            costs={name: _together(name, processes) for name in processes[0].costs},
            closure=statistics.median(process.closure for process in processes),
            process_count=len(processes),
            processes=tuple(processes),
            discarded=discarded,
        )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.processes) != self.process_count:
            raise ValueError(
                f"process_count is {self.process_count} and there are {len(self.processes)} "
                "processes: some are missing, or were added; calibrate again"
            )
        for number, process in enumerate(self.processes, start=1):
            if odd := self.costs.keys() ^ process.costs.keys():
                raise ValueError(
                    f"costs and process {number} do not have the same operations (in one alone: "
                    f"{', '.join(sorted(odd))}); calibrate again"
                )
        if self.every.keys() != self.costs.keys() or min(self.every.values()) < 1:
            raise ValueError(f"every must give each operation a number from 1, not {self.every}")
        if math.lcm(*self.every.values()) > MOST_PASSES:
            raise ValueError(
                f"every makes a loop of more than {MOST_PASSES:g} passes: {self.every}; give the "
                "operations numbers with small common multiples"
            )
        for name, cost in self.costs.items():
            borne_out = _together(name, self.processes)
            for field, value in borne_out.model_dump().items():
                _check_stated(f"{name}.{field}", getattr(cost, field), value)
        closure = statistics.median(process.closure for process in self.processes)
        _check_stated("closure", self.closure, closure)
        return self

    @property
    def seconds(self) -> dict[str, float]:
        """Charged seconds by operation, one run each: the medians."""
        return {name: cost.median_seconds for name, cost in self.costs.items()}

    @property
    def other_cores(self) -> float:
        """Cores that other processes kept busy, in the worst of the processes."""
        return max(process.noise.other_cores for process in self.processes)

    @property
    def cores_elsewhere(self) -> float:
        """Busy cores on which the processes could not run, in the worst of the processes."""
        return max(process.noise.cores_elsewhere for process in self.processes)

    @property
    def slowed_share(self) -> float:
        """Of the passes, those on a processor slowed from outside, in the worst process."""
        return max(process.noise.slowed_share or 0.0 for process in self.processes)

    @property
    def mixed_loop(self) -> dict[str, int]:
        """Counts of the operations in the shortest loop that has all in their proportions."""
        passes = math.lcm(*self.every.values())
        return {name: passes // every for name, every in self.every.items()}

    def require_workload(self, workload: Mapping[str, str | int | float]) -> None:
        """Check that this profile was measured for this workload.

        Raises:
            ProfileError: it was measured for another one.
        """
        for key in sorted(self.workload.keys() | workload.keys()):
            if key == FLOPS and not (key in self.workload and key in workload):
                continue
            mine, asked = self.workload.get(key), workload.get(key)
            if mine != asked:
                raise ProfileError(
                    f"the reference profile was measured with {key}={mine!r} and this run has "
                    f"{key}={asked!r}: costs do not carry over; calibrate one for this run"
                )

    def require(self, workload: Mapping[str, str | int | float], operations: set[str]) -> None:
        """Check that this profile can charge these operations of this workload.

        Raises:
            ProfileError: it was measured for another workload, or lacks an operation.
        """
        self.require_workload(workload)
        missing = operations - self.costs.keys()
        if missing:
            raise ProfileError(
                f"the reference profile has no cost for {', '.join(sorted(missing))} (it has "
                f"{', '.join(sorted(self.costs))}): an operation without a cost is never free; "
                "calibrate again"
            )

    def write(self, path: Path) -> None:
        """Write the document as JSON, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a document.

        Raises:
            ProfileError: it cannot be read, is no profile, is of another version, holds a cost that
                is not a positive, finite number, or does not add up.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise ProfileError(f"{path}: {error.strerror}") from error
        if len(content) > MOST_BYTES:
            raise ProfileError(f"{path} is longer than any profile, {MOST_BYTES} bytes")
        try:
            document = json.loads(content)
        except ValueError as error:
            raise ProfileError(f"{path} is not JSON: {error}") from error
        except RecursionError:
            raise ProfileError(f"{path} is no profile: it is nested too deeply") from None
        version = document.get("version") if isinstance(document, dict) else None
        if version == 1:
            raise ProfileError(
                f"{path} is a reference profile of version 1, which kept no costs by process and "
                "so bears no interval: calibrate again"
            )
        if version != 2:
            raise ProfileError(
                f"{path} is no reference profile of version 2 (version: {_shown(version)}): was "
                "it written by a newer lawa-opt?"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            said = first["msg"].removeprefix("Value error, ")
            if not (where := ".".join(str(part) for part in first["loc"])):
                raise ProfileError(f"{path}: {said}") from error
            found = _shown(first["input"])
            raise ProfileError(f"{path}: {where}: {said} (found {found})") from error


def _shown(value: object) -> str:
    """Return a value of a document, cut short: it may be of any size and depth."""
    return f"{reprlib.repr(value):.60}"


def _together(operation: str, processes: Sequence[Calibration]) -> Cost:
    """What the processes say of an operation together."""
    costs = [process.costs[operation] for process in processes]
    return Cost(
        median_seconds=statistics.median(cost.median_seconds for cost in costs),
        spread_seconds=statistics.median(cost.spread_seconds for cost in costs),
        samples=sum(cost.samples for cost in costs),
    )


def _check_stated(what: str, stated: float, borne_out: float) -> None:
    # Other writers of JSON may keep fewer than Python's 17 digits.
    if not math.isclose(stated, borne_out, rel_tol=1e-9):
        raise ValueError(
            f"{what} is {stated!r} and its processes give {borne_out!r}: edited by hand, or a "
            "digit is missing; calibrate again"
        )
