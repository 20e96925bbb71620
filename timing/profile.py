"""What each operation costs on the reference machine, as a checked JSON document."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from timing.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

# Above this, the profile's costs do not add up to what a real loop takes.
LARGEST_CLOSURE = 0.05


class ProfileError(ValueError):
    """A profile that cannot be used, with the reason and what to do."""


class Cost(BaseModel):
    """Seconds that one run of an operation takes on the reference machine.

    `spread_seconds` is the interquartile range of the `samples` single runs behind the median.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median_seconds: float = Field(gt=0)
    spread_seconds: float = Field(ge=0)
    samples: int = Field(ge=1)


class Profile(BaseModel):
    """The reference: a machine, a workload, and the cost of each operation there.

    Attributes:
        version: of this document's format.
        created: when it was measured.
        machine: the reference machine.
        workload: what the costs depend on: model, batch, shapes, dtype, optimizer, k.
        costs: by operation.
        closure: reference seconds of a real mixed loop over its measured seconds, minus one.
        other_cores: cores that other processes kept busy while it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    machine: Machine
    workload: dict[str, str | int | float]
    costs: dict[str, Cost]
    closure: float
    other_cores: float = Field(ge=0)

    @property
    def seconds(self) -> dict[str, float]:
        """Median seconds by operation."""
        return {operation: cost.median_seconds for operation, cost in self.costs.items()}

    def require(self, workload: dict[str, str | int | float], operations: set[str]) -> None:
        """Check that this profile can charge these operations of this workload.

        Raises:
            ProfileError: it was measured for another workload, or lacks an operation.
        """
        for key in sorted(self.workload.keys() | workload.keys()):
            mine, asked = self.workload.get(key), workload.get(key)
            if mine != asked:
                raise ProfileError(
                    f"the reference profile was measured with {key}={mine!r} and this run has "
                    f"{key}={asked!r}: costs do not carry over; calibrate one for this run"
                )
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
            with temporary.open("w") as file:
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
            ProfileError: it cannot be read, is no profile, is of an unknown version, or holds a
                cost that is not a positive, finite number.
        """
        try:
            document = json.loads(path.read_text())
        except OSError as error:
            raise ProfileError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise ProfileError(f"{path} is not JSON: {error}") from error
        version = document.get("version") if isinstance(document, dict) else None
        if version != 1:
            raise ProfileError(
                f"{path} is no reference profile of version 1 (version: {version!r}): was it "
                "written by a newer lawa-opt?"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ProfileError(
                f"{path}: {where}: {first['msg']} (found {first['input']!r:.60})"
            ) from error
