"""Reference profiles of made-up processes."""

from collections.abc import Mapping, Sequence
from typing import Any

from timing import (
    Calibration,
    Cost,
    Profile,
    this_machine,
    this_software,
)
from timing.calibration.disturbance import Noise
from timing.calibration.row import Burst, Energy

WORKLOAD = {"workload": "digits", "batch": 64, "k": 5}

MACHINE, SOFTWARE = this_machine(), this_software()


def process(
    seconds: Mapping[str, float], additivity_error: float = 0.0, warnings: tuple[str, ...] = ()
) -> Calibration:
    noise = Noise(
        window_seconds=30.0,
        other_cores=0.03,
        throttled_seconds=None,
        gpu_processes=None,
        warnings=warnings,
        unavailable=(),
    )
    costs = {
        name: Cost(median_seconds=median, spread_seconds=median / 10, samples=100)
        for name, median in seconds.items()
    }
    return Calibration(costs=costs, additivity_error=additivity_error, noise=noise)


def profile_of(
    rows: Sequence[Mapping[str, float] | Calibration],
    workload: Mapping[str, Any] = WORKLOAD,
    every: Mapping[str, int] | None = None,
) -> Profile:
    """A profile from what each process measured."""
    processes = [row if isinstance(row, Calibration) else process(row) for row in rows]
    every = every or dict.fromkeys(processes[0].costs, 1)
    return Profile(
        machine=MACHINE,
        software=SOFTWARE,
        workload=dict(workload),
        every=dict(every),
        processes=tuple(processes),
    )


ROWS = [
    {"train_step": 0.01, "evaluate": 0.2},
    {"train_step": 0.0102, "evaluate": 0.202},
    {"train_step": 0.0099, "evaluate": 0.199},
    {"train_step": 0.0101, "evaluate": 0.2},
    {"train_step": 0.01, "evaluate": 0.201},
]


def profile() -> Profile:
    return profile_of(ROWS)


def with_watts(row: Calibration, **watts: float) -> Calibration:
    """A process that has read these operations too, for 5 s each."""
    bursts = {name: Burst(joules=5 * each, seconds=5) for name, each in watts.items()}
    return row.model_copy(
        update={"energy": Energy(of="NVIDIA A", period_seconds=0.1, bursts=bursts)}
    )
