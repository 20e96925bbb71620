"""Disturbances of a measurement: other processes, a throttled or shared GPU, a slower processor.

    with NoiseWatch() as watch:
        ...
    print(watch.noise().warnings)

It is recorded with what was measured. Empty `warnings` say that nothing was noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from timing.clocks.stopwatch import Stopwatch
from timing.gpu.nvml import Device
from timing.gpu.span import throttled_between
from timing.gpu.visible_devices import visible_devices

# A quiet machine shows 0.05, a competitor that keeps a core busy 1.0.
LARGEST_OTHER_CORES = 0.25
# Below, the hundredths of a second in which the system counts make load out of nothing.
SHORTEST_WATCH_SECONDS = 1.0
LARGEST_THROTTLED_SHARE = 0.01
# Where the processor was disturbed for longer, too little is left to be taken instead.
MAX_DISTURBED_SHARE = 0.95

_REMEDIES = {
    "software power cap": "raise its power limit, or calibrate and train under the same one",
    "sync boost": "take it out of its sync boost group",
    "software thermal slowdown": "cool it, or let it rest first",
    "hardware thermal slowdown": "cool it, or let it rest first",
    "hardware power brake": "look at the machine's power supply",
}

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_T = TypeVar("_T")


class Noise(BaseModel):
    """Disturbances of a measurement; None is what could not be read, as `unavailable` says.

    Attributes:
        window_seconds: how long it was watched.
        other_cores: mean number of cores that other processes kept busy, of those on which this
            process may run.
        cores_elsewhere: mean number of busy cores among the others. It is no reason to measure
            again: on a shared machine there are always some.
        throttled_seconds: how long the GPU worst off was held back, by reason; several reasons
            may hold at once.
        gpu_processes: other processes seen on the visible GPUs at the begin or the end.
        disturbed_share: of the measurements, those in which the processor ran slower than of its
            own accord (`timing.calibration.cpu_probe`), for the operation worst off; a calibration
            leaves them out.
        throttled_share: of the passes, those in which a GPU was throttled, which a calibration
            leaves out; 1 where too few others were left, and all are kept; None where no GPU tells.
        warnings: what is too much, and what to do about it; empty when all is quiet.
        unavailable: what could not be read, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_seconds: Amount
    other_cores: Amount
    cores_elsewhere: Amount = 0.0
    throttled_seconds: dict[str, Amount] | None
    gpu_processes: Annotated[int, Field(ge=0)] | None
    disturbed_share: Amount | None = None
    throttled_share: Amount | None = None
    warnings: tuple[str, ...]
    unavailable: tuple[str, ...]


class NoiseWatch:
    """Watches what disturbs the block it is around; two reads, nothing in between.

    It asks NVML for the GPUs that this process may use and never starts CUDA. Without one the
    processor alone is watched.
    """

    def __init__(self) -> None:
        self._stopwatch = Stopwatch()
        self._devices: tuple[Device, ...] = ()
        self._unavailable: str | None = None
        self._before: list[_Reading] = []
        self._after: list[_Reading] | None = None

    def __enter__(self) -> Self:
        self._stopwatch = Stopwatch()
        self._devices, self._unavailable = visible_devices()
        self._before = [_Reading(device) for device in self._devices]
        self._after = None
        self._stopwatch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopwatch.stop()
        self._after = [_Reading(device) for device in self._devices]

    def throttled_between(self, run: Callable[[], _T]) -> tuple[_T, bool | None]:
        """Run something, and return whether a GPU was throttled in it; None where none tells."""
        before = [device.throttled_seconds() for device in self._devices]
        begin = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - begin
        held = [
            each
            for device, earlier in zip(self._devices, before, strict=True)
            for each in throttled_between(earlier, device.throttled_seconds()).values()
        ]
        return result, max(held) > LARGEST_THROTTLED_SHARE * seconds if held else None

    def noise(
        self, disturbed_share: float | None = None, throttled_share: float | None = None
    ) -> Noise:
        """Return what was noticed between the begin and the end of the block.

        Args:
            disturbed_share: in how many of the measurements the processor was slowed down.
            throttled_share: in how many of them a GPU was throttled; where they are left out, what
                throttled it is no warning.

        Raises:
            RuntimeError: if the block has not ended.
        """
        if self._after is None:
            raise RuntimeError("this watch has seen no whole block yet: end `with watch:` first")
        window = self._stopwatch.wall_seconds
        warnings: list[str] = []
        unavailable = [self._unavailable] if self._unavailable else []

        other_cores = self._stopwatch.other_cores
        if window < SHORTEST_WATCH_SECONDS:
            unavailable.append(
                f"the load of others is not judged: {window:.2g} s is under "
                f"{SHORTEST_WATCH_SECONDS:g} s"
            )
        elif other_cores > LARGEST_OTHER_CORES:
            warnings.append(
                f"the host of this virtual machine kept {other_cores:.1f} of its cores from it: "
                "measure at another time, or elsewhere"
                if self._stopwatch.stolen_cores > other_cores / 2
                else f"other processes kept {other_cores:.1f} cores busy: close them, or measure "
                "when the machine is idle"
            )

        left_out = throttled_share is not None and throttled_share <= MAX_DISTURBED_SHARE
        throttled: dict[str, float] = {}
        processes: set[int] = set()
        told_throttle = told_processes = False
        for device, before, after in zip(self._devices, self._before, self._after, strict=True):
            for reason, seconds in throttled_between(before.throttled, after.throttled).items():
                told_throttle = True
                throttled[reason] = max(seconds, throttled.get(reason, 0.0))
                if seconds > LARGEST_THROTTLED_SHARE * window and not left_out:
                    warnings.append(
                        f"{device} was held back {seconds:.2g} s of {window:.2g} s by "
                        f"{reason}: {_REMEDIES[reason]}"
                    )
            others = {*(before.processes or ()), *(after.processes or ())}
            told_processes |= before.processes is not None and after.processes is not None
            processes |= others
            if others:
                warnings.append(
                    f"{device} was shared with {len(others)} other process(es), "
                    f"{', '.join(map(str, sorted(others)))}: end them, or use another GPU"
                )
            unavailable += [
                f"{device}: no {what}: {why}" for what, why in device.unavailable.items()
            ]

        if disturbed_share is not None and disturbed_share > MAX_DISTURBED_SHARE:
            warnings.append(
                f"the processor ran slower than it can in {disturbed_share:.0%} of the "
                "measurements, and nothing here is the reason: a virtual machine shares its cores "
                "with neighbours, and a hot one is clocked down; try at another time, or elsewhere"
            )
        return Noise(
            window_seconds=window,
            other_cores=other_cores,
            cores_elsewhere=self._stopwatch.cores_elsewhere,
            throttled_seconds=throttled if told_throttle else None,
            gpu_processes=len(processes) if told_processes else None,
            disturbed_share=disturbed_share,
            throttled_share=throttled_share,
            warnings=tuple(warnings),
            unavailable=tuple(unavailable),
        )


class _Reading:
    """One device's counters at one end of the block."""

    def __init__(self, device: Device) -> None:
        self.throttled = device.throttled_seconds()
        self.processes = device.other_process_ids()
