"""The costs of operations on the reference machine, as a checked JSON document."""

from __future__ import annotations

import json
import math
import os
import reprlib
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from timing.calibration.environment import Machine, Software
from timing.calibration.row import LARGEST_NUMBER, Calibration, Cost

MOST_PASSES = 10**9
MOST_BYTES = 2**26

FLOPS = "flops_per_step"
REMEDY = (
    "`python -m timing calibrate TARGET --out FILE`, or leave out --reference and "
    "`python -m baselines compare` measures one"
)


def check_signature(signature: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """Return a copy of a signature whose numbers are all of a sensible size.

    Raises:
        ValueError: a number in it is not finite, or is larger than any that means something.
    """
    for key, value in signature.items():
        if not isinstance(value, str) and not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{key} must be a number of up to {LARGEST_NUMBER:g} either way")
    return dict(signature)


Signature = Annotated[dict[str, str | int | float], AfterValidator(check_signature)]


class ProfileError(ValueError):
    """A profile that cannot be used, with the reason and what to do."""


def _told(signature: Mapping[str, str | int | float], keys: Sequence[str]) -> str:
    return ", ".join(
        f"{key}={signature[key]!r}" if key in signature else f"no {key}" for key in keys
    )


class Profile(BaseModel):
    """The reference: a machine, a workload, and the cost of each operation there.

    It keeps what was measured, a row a process, and derives all else. Charged for an operation is
    its median, which outliers do not move. How far the medians are from adding up to a real loop is
    told, and not corrected for: what it comes from, a rare operation or what a rare one leaves
    behind it, is none of the others' cost.

    Where a counter told, it has joules too: of whole devices, whoever used them.

    Attributes:
        version: of this document's format.
        created: when it was measured.
        machine: the reference machine.
        software: what ran there, and how it was set.
        workload: what the costs depend on: model, batch, shapes, dtype, optimizer, k. It may hold
            `flops_per_step`, a whole number that is the same on every machine and so a cross-check
            beside the time; it is compared where both sides have it.
        every: in how many passes through the reference iteration each operation ran once.
        processes: what each fresh process measured.
        discarded: processes left out because they were disturbed, or did not add up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[3] = 3
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    machine: Machine
    software: Software
    workload: Signature
    every: dict[str, Annotated[int, Field(le=MOST_PASSES)]]
    processes: tuple[Calibration, ...] = Field(min_length=1)
    discarded: int = Field(ge=0, default=0)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        operations = self.every.keys()
        for number, process in enumerate(self.processes, start=1):
            if odd := operations ^ process.costs.keys():
                raise ValueError(
                    f"every and process {number} do not have the same operations (in one alone: "
                    f"{', '.join(sorted(odd))}); calibrate again"
                )
        if min(self.every.values()) < 1:
            raise ValueError(f"every must give each operation a number from 1, not {self.every}")
        if math.lcm(*self.every.values()) > MOST_PASSES:
            raise ValueError(
                f"every makes a loop of more than {MOST_PASSES:g} passes: {self.every}; give the "
                "operations numbers with small common multiples"
            )
        devices = {process.energy.of for process in self.processes if process.energy}
        if len(devices) > 1:
            raise ValueError(f"joules are of one meter, and not of {', '.join(sorted(devices))}")
        for process in self.processes:
            energy = process.energy
            if energy and (odd := {*energy.bursts, *energy.loop_counts} - operations):
                raise ValueError(
                    f"energy has operations that every lacks: {', '.join(sorted(odd))}"
                )
        return self

    @property
    def costs(self) -> dict[str, Cost]:
        """Return by operation the median of the medians, that of the spreads, and all samples."""
        return {name: _pool(name, self.processes) for name in self.processes[0].costs}

    @property
    def additivity_error(self) -> float:
        """Return the median over the processes."""
        return statistics.median(process.additivity_error for process in self.processes)

    @property
    def seconds(self) -> dict[str, float]:
        """Return charged seconds by operation, one run each: the medians."""
        return {name: cost.median_seconds for name, cost in self.costs.items()}

    @property
    def watts(self) -> dict[str, float]:
        """Return watts by operation: the median of the processes that read it; empty if none."""
        read: dict[str, list[float]] = {}
        for process in self.processes:
            for name, burst in process.energy.bursts.items() if process.energy else ():
                read.setdefault(name, []).append(burst.watts)
        return {name: statistics.median(read[name]) for name in self.costs if name in read}

    @property
    def joules(self) -> dict[str, float]:
        """Return joules by operation, one run each: watts times charged seconds; empty if none."""
        seconds = self.seconds
        return {name: watts * seconds[name] for name, watts in self.watts.items()}

    @property
    def joules_of(self) -> str:
        """Return whose joules they are; empty where none were read."""
        return next((process.energy.of for process in self.processes if process.energy), "")

    @property
    def other_cores(self) -> float:
        """Return the cores that other processes kept busy, in the worst of the processes."""
        return max(process.noise.other_cores for process in self.processes)

    @property
    def cores_elsewhere(self) -> float:
        """Return the busy cores on which the processes could not run, in the worst of them."""
        return max(process.noise.cores_elsewhere for process in self.processes)

    @property
    def disturbed_share(self) -> float:
        """Return the share of the passes on a disturbed processor, in the worst process."""
        return max(process.noise.disturbed_share or 0.0 for process in self.processes)

    @property
    def reference_iteration(self) -> dict[str, int]:
        """Return the operations' counts in the shortest loop that has all in proportion."""
        passes = math.lcm(*self.every.values())
        return {name: passes // every for name, every in self.every.items()}

    def require_workload(self, workload: Mapping[str, str | int | float]) -> None:
        """Check that this profile was measured for this workload.

        Raises:
            ProfileError: it was measured for another one.
        """
        differing = [
            key
            for key in sorted(self.workload.keys() | workload.keys())
            if self.workload.get(key) != workload.get(key)
            and (key != FLOPS or (key in self.workload and key in workload))
        ]
        if differing:
            raise ProfileError(
                f"the reference profile was measured with {_told(self.workload, differing)} and "
                f"this run has {_told(workload, differing)}: costs do not carry over; calibrate "
                "one for this run"
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

    def write(self, path: str | Path) -> None:
        """Write the document as JSON, whole or not at all."""
        path = Path(path)
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
    def read(cls, path: str | Path) -> Self:
        """Read and check a document.

        Raises:
            ProfileError: it cannot be read, is no profile, is of another version, or holds
                what no calibration measures.
        """
        document = read_json(path, "profile", ProfileError)
        version = document.get("version") if isinstance(document, dict) else None
        if version in (1, 2):
            raise ProfileError(
                f"{path} is a reference profile of version {version}, and this lawa-opt reads "
                f"version 3, which keeps what each process measured alone: calibrate anew by "
                f"{REMEDY}"
            )
        if version != 3:
            raise ProfileError(
                f"{path} is no reference profile of version 3 (version: {_shown(version)}): was "
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


def read_json(path: str | Path, what: str, error_of: type[ValueError]) -> Any:
    """Return what a JSON file holds, of which it is not known where it is from.

    Args:
        path: the file.
        what: it is to be.
        error_of: the error where it cannot be read, is too long for that, or is no JSON.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise error_of(f"{path}: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise error_of(f"{path} is longer than any {what}, {MOST_BYTES} bytes")
    try:
        return json.loads(content)
    except ValueError as error:
        raise error_of(f"{path} is not JSON: {error}") from error
    except RecursionError:
        raise error_of(f"{path} is no {what}: it is nested too deeply") from None


def _shown(value: object) -> str:
    """Return a value of a document, cut short: it may be of any size and depth."""
    return f"{reprlib.repr(value):.60}"


def _pool(operation: str, processes: Sequence[Calibration]) -> Cost:
    """Return what the processes together say of an operation."""
    costs = [process.costs[operation] for process in processes]
    return Cost(
        median_seconds=statistics.median(cost.median_seconds for cost in costs),
        spread_seconds=statistics.median(cost.spread_seconds for cost in costs),
        samples=sum(cost.samples for cost in costs),
    )
