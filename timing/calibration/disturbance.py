"""What disturbed a measurement: other processes, a throttled or shared GPU, scattered samples.

    with NoiseWatch() as watch:
        ...
    noise = watch.noise(spread_seconds=..., expected_spread_seconds=...)
    noise.warn()

It is recorded with what was measured. An empty `reasons` says that nothing was noticed.
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from timing.clocks.stopwatch import Stopwatch
from timing.gpu.meter import throttled_between
from timing.gpu.nvml import Device, visible_devices

# A quiet machine shows 0.05, a competitor that keeps a core busy 1.0.
LARGEST_OTHER_CORES = 0.25
# Below, the hundredths of a second in which the system counts make load out of nothing.
SHORTEST_WATCH_SECONDS = 1.0
LARGEST_THROTTLED_SHARE = 0.01
# The spread of some dozens of samples differs by less from one quiet run to the next.
LARGEST_SPREAD_RATIO = 2.0
# Where the processor was slowed down for longer, too little is left to be taken instead.
LARGEST_SLOWED_SHARE = 0.95

_REMEDIES = {
    "software power cap": "raise its power limit, or calibrate and train under the same one",
    "sync boost": "take it out of its sync boost group",
    "software thermal slowdown": "cool it, or let it rest first",
    "hardware thermal slowdown": "cool it, or let it rest first",
    "hardware power brake": "look at the machine's power supply",
}

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Noise(BaseModel):
    """What disturbed a measurement; None is what could not be read, as `gaps` says.

    Attributes:
        window_seconds: how long it was watched.
        other_cores: mean number of cores that other processes kept busy, of those on which this
            process may run.
        cores_elsewhere: mean number of busy cores among the others. It is no reason to measure
            again: on a shared machine there are always some.
        throttled_seconds: how long the GPU worst off was held back, by reason; several reasons
            may hold at once.
        gpu_processes: other processes seen on the visible GPUs at the begin or the end.
        spread_ratio: spread of the samples over the spread expected of them.
        slowed_share: of the measurements, those in which the processor ran slower than of its own
            accord (`timing.calibration.pace`), for the operation worst off; a calibration leaves
            them out.
        reasons: what is too much, and what to do about it; empty when all is quiet.
        gaps: what could not be read, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_seconds: Amount
    other_cores: Amount
    cores_elsewhere: Amount = 0.0
    throttled_seconds: dict[str, Amount] | None
    gpu_processes: Annotated[int, Field(ge=0)] | None
    spread_ratio: Amount | None
    slowed_share: Amount | None = None
    reasons: tuple[str, ...]
    gaps: tuple[str, ...]

    def warn(self) -> None:
        """Give each of the reasons as a RuntimeWarning."""
        for reason in self.reasons:
            warnings.warn(f"this measurement was disturbed: {reason}", RuntimeWarning, stacklevel=2)


class NoiseWatch:
    """Watches what disturbs the block it is around; two reads, nothing in between.

    It asks NVML for the GPUs that this process may use and never starts CUDA. Without one the
    processor alone is watched.
    """

    def __init__(self) -> None:
        self._stopwatch = Stopwatch()
        self._devices: tuple[Device, ...] = ()
        self._absence: str | None = None
        self._before: list[_Reading] = []
        self._after: list[_Reading] | None = None

    def __enter__(self) -> Self:
        self._stopwatch = Stopwatch()
        self._devices, self._absence = visible_devices()
        self._before = [_Reading(device) for device in self._devices]
        self._after = None
        self._stopwatch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopwatch.stop()
        self._after = [_Reading(device) for device in self._devices]

    def noise(
        self,
        spread_seconds: float | None = None,
        expected_spread_seconds: float | None = None,
        slowed_share: float | None = None,
    ) -> Noise:
        """What was noticed between the begin and the end of the block.

        Args:
            spread_seconds: interquartile range of what was timed in the block.
            expected_spread_seconds: the same on the quiet machine, such as the profile's own.
            slowed_share: in how many of the measurements the processor was slowed down.

        Raises:
            RuntimeError: if the block has not ended.
            ValueError: if a spread is negative or not finite.
        """
        if self._after is None:
            raise RuntimeError("this watch has seen no whole block yet: end `with watch:` first")
        window = self._stopwatch.wall_seconds
        reasons: list[str] = []
        gaps = [self._absence] if self._absence else []

        other_cores = self._stopwatch.other_cores
        if window < SHORTEST_WATCH_SECONDS:
            gaps.append(
                f"the load of others is not judged: {window:.2g} s is under "
                f"{SHORTEST_WATCH_SECONDS:g} s"
            )
        elif other_cores > LARGEST_OTHER_CORES:
            reasons.append(
                f"the host of this virtual machine kept {other_cores:.1f} of its cores from it: "
                "measure at another time, or elsewhere"
                if self._stopwatch.stolen_cores > other_cores / 2
                else f"other processes kept {other_cores:.1f} cores busy: close them, or measure "
                "when the machine is idle"
            )

        throttled: dict[str, float] = {}
        processes: set[int] = set()
        told_throttle = told_processes = False
        for device, before, after in zip(self._devices, self._before, self._after, strict=True):
            for reason, seconds in throttled_between(before.throttled, after.throttled).items():
                told_throttle = True
                throttled[reason] = max(seconds, throttled.get(reason, 0.0))
                if seconds > LARGEST_THROTTLED_SHARE * window:
                    reasons.append(
                        f"{device} was held back {seconds:.2g} s of {window:.2g} s by "
                        f"{reason}: {_REMEDIES[reason]}"
                    )
            others = {*(before.processes or ()), *(after.processes or ())}
            told_processes |= before.processes is not None and after.processes is not None
            processes |= others
            if others:
                reasons.append(
                    f"{device} was shared with {len(others)} other process(es), "
                    f"{', '.join(map(str, sorted(others)))}: end them, or use another GPU"
                )
            gaps += [f"{device}: no {what}: {why}" for what, why in device.refusals.items()]

        ratio = _ratio(spread_seconds, expected_spread_seconds)
        if ratio is not None and ratio > LARGEST_SPREAD_RATIO:
            reasons.append(
                f"the samples scatter {ratio:.1f} times as much as in the profile: take more, in a "
                "quiet moment, or calibrate again if they always do"
            )
        if slowed_share is not None and slowed_share > LARGEST_SLOWED_SHARE:
            reasons.append(
                f"the processor ran slower than it can in {slowed_share:.0%} of the measurements, "
                "and nothing here is the reason: a virtual machine shares its cores with "
                "neighbours, and a hot one is clocked down; try at another time, or elsewhere"
            )
        return Noise(
            window_seconds=window,
            other_cores=other_cores,
            cores_elsewhere=self._stopwatch.cores_elsewhere,
            throttled_seconds=throttled if told_throttle else None,
            gpu_processes=len(processes) if told_processes else None,
            spread_ratio=ratio,
            slowed_share=slowed_share,
            reasons=tuple(reasons),
            gaps=tuple(gaps),
        )


class _Reading:
    """What one device says at one end of the block."""

    def __init__(self, device: Device) -> None:
        self.throttled = device.throttled_seconds()
        self.processes = device.other_process_ids()


def _ratio(spread_seconds: float | None, expected_spread_seconds: float | None) -> float | None:
    for spread in (spread_seconds, expected_spread_seconds):
        if spread is not None and not (math.isfinite(spread) and spread >= 0):
            raise ValueError(f"a spread is a finite time from 0 up, in seconds; got {spread}")
    if spread_seconds is None or not expected_spread_seconds:
        return None
    return spread_seconds / expected_spread_seconds
