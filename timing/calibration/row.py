"""A row of a profile: what one process measured, in seconds and joules by operation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from timing.calibration.cpu_probe import is_disturbed
from timing.calibration.disturbance import Noise
from timing.gpu.heat import Heat
from timing.rst.account import FEMTOSECONDS

# Above this, single timings are too far from what a real loop takes to be scaled to it.
MAX_ADDITIVITY_ERROR = 0.05

# Beyond these no profile is of anything that ran, and sums and ratios leave what floats can hold.
LEAST_SECONDS, MOST_SECONDS = 1 / FEMTOSECONDS, 1e9
LARGEST_COUNT = 10**15
LARGEST_NUMBER = 1e30


def _check_countable(seconds: float) -> float:
    if seconds < LEAST_SECONDS:
        raise ValueError(f"must be {LEAST_SECONDS:g} s or more, the least that an account counts")
    return seconds


class Cost(BaseModel):
    """Seconds that one run of an operation takes on the reference machine.

    `spread_seconds` is the interquartile range of the `samples` single runs behind the median; over
    several processes it is their median spread, and `samples` their sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median_seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS), AfterValidator(_check_countable)]
    spread_seconds: float = Field(ge=0, le=MOST_SECONDS)
    samples: int = Field(ge=1, le=LARGEST_COUNT)


class Burst(BaseModel):
    """Joules that a counter told of a span, and its length."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    joules: float = Field(gt=0, le=LARGEST_NUMBER)
    seconds: float = Field(ge=LEAST_SECONDS, le=MOST_SECONDS)

    @property
    def watts(self) -> float:
        """Return the mean power."""
        return self.joules / self.seconds


class Energy(BaseModel):
    """Joules that one process read, as `timing.calibration.energy` says.

    Attributes:
        of: whose they are, such as "NVIDIA H200" or "the processors": of whole devices, whoever
            used them, and what they draw when idle is in it.
        period_seconds: between two updates of the counter, at the most.
        bursts: by operation, each run again and again.
        loop: the loop in which the seconds were measured; None if it was too short to be read.
        loop_counts: how often each operation ran in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    of: str
    period_seconds: float = Field(ge=0, le=1)
    bursts: dict[str, Burst] = Field(min_length=1)
    loop: Burst | None = None
    loop_counts: dict[str, Annotated[int, Field(ge=0, le=LARGEST_COUNT)]] = {}

    def bound(self, operation: str) -> float:
        """Return the error that the watts of an operation may have, as a share."""
        return self.period_seconds / self.bursts[operation].seconds


class Calibration(BaseModel):
    """The measurement of one process.

    Attributes:
        costs: by operation.
        additivity_error: what the medians of a real loop add up to, over its measured seconds,
            minus one. Below zero on a machine whose timings are skewed, for there medians are below
            means, and where what ran before makes an operation slower now and then.
        noise: what disturbed the measurement.
        cpu_probe_seconds: what the fixed work of `timing.calibration.cpu_probe` took meanwhile;
            None if it was not asked.
        energy: joules of operations; None where none were read, and then a file has no such field.
        heat: of the GPUs in use; empty, and not in a file, where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    costs: dict[str, Cost] = Field(min_length=1)
    additivity_error: float = Field(gt=-1, le=LARGEST_NUMBER)
    noise: Noise
    cpu_probe_seconds: float | None = Field(default=None, ge=0)
    energy: Energy | None = None
    heat: tuple[Heat, ...] = ()

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_known(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        for name in ("energy", "heat"):
            if not found.get(name):
                found.pop(name, None)
        return found

    @property
    def seconds(self) -> dict[str, float]:
        """Return charged seconds by operation, as this process alone gives them: the medians."""
        return {name: cost.median_seconds for name, cost in self.costs.items()}

    def errors(self, known_probe: float | None = None) -> tuple[str, ...]:
        """Return why this process should not be part of a profile; empty if it may be.

        Args:
            known_probe: `cpu_probe_seconds` of the fastest process, if there is any.
        """
        found = list(self.noise.warnings)
        probe = self.cpu_probe_seconds
        if known_probe and probe and is_disturbed(probe, known_probe):
            found.append(
                f"the processor took {probe / known_probe:.2f} times as long as in the fastest "
                "process, for the same work"
            )
        if abs(self.additivity_error) > MAX_ADDITIVITY_ERROR:
            found.append(f"its additivity error is {self.additivity_error:+.1%}")
        return tuple(found)
