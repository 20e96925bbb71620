"""Temperatures and clocks of GPUs before and after work, and the wait for them to cool."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from pydantic import BaseModel, ConfigDict

from timing.gpu.active_time import Amount
from timing.gpu.nvml import Device
from timing.gpu.visible_devices import visible_devices

LOOK_SECONDS = 0.5
# What a device says of its own state, as `Device.unavailable` names it.
_QUANTITIES = ("temperature", "SM clock", "memory clock")


class State(BaseModel):
    """The temperature of a GPU's die, and its clocks, at a moment; None could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    celsius: float | None
    sm_clock_mhz: Amount | None
    memory_clock_mhz: Amount | None


class Heat(BaseModel):
    """A GPU before and after work.

    Attributes:
        uuid: of the device.
        name: the card's name.
        waited_seconds: for it to cool, before the work.
        before: after that wait.
        after: at the end of the work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    uuid: str
    name: str
    waited_seconds: Amount
    before: State
    after: State


class HeatWatch:
    """Reads the GPUs of this process when it is made, once they have cooled, and at `end`.

    CUDA is not started, so which of them will be used is not known before the end.

    Args:
        cool_to: degrees Celsius to which a device is to cool first, by UUID.
        seconds: that this may take.
        say: told how long it waited, or that it could not.
    """

    def __init__(
        self, cool_to: Mapping[str, float], seconds: float, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._devices, self._unavailable = visible_devices()
        self._waited = {
            device.uuid: self._cool(device, cool_to[device.uuid], seconds)
            for device in self._devices
            if device.uuid in cool_to
        }
        self._before = [_state(device) for device in self._devices]

    def _cool(self, device: Device, celsius: float, seconds: float) -> float:
        """Wait until a device is this cool, or the time is over; returns the seconds."""
        began = time.monotonic()
        first = now = device.temperature_celsius()
        while now is not None and now > celsius and time.monotonic() - began < seconds:
            time.sleep(min(LOOK_SECONDS, seconds))
            now = device.temperature_celsius()
        waited = time.monotonic() - began
        if now is not None and now > celsius:
            self._say(
                f"{device} still has {now} °C after a wait of {waited:.1f} s, and was to cool to "
                f"{celsius:g} °C: more --seconds give it longer"
            )
        elif first is not None and first > celsius:
            how = "and then it told no more" if now is None else f"from {first} to {now} °C"
            self._say(f"waited {waited:.1f} s for {device} to cool, {how}")
        return waited

    def end(self, used: Collection[str]) -> tuple[Heat, ...]:
        """Return the devices of these UUIDs, before and now; says what they do not tell."""
        found = []
        for device, before in zip(self._devices, self._before, strict=True):
            if device.uuid not in used:
                continue
            waited = self._waited.get(device.uuid, 0.0)
            found.append(
                Heat(
                    uuid=device.uuid,
                    name=device.name,
                    waited_seconds=waited,
                    before=before,
                    after=_state(device),
                )
            )
            for quantity in _QUANTITIES:
                if why := device.unavailable.get(quantity):
                    self._say(f"{device}: no {quantity}: {why}")
        if used and not found:
            self._say(f"no temperatures of GPUs: {self._unavailable or 'NVML knows none of them'}")
        return tuple(found)


def _state(device: Device) -> State:
    return State(
        celsius=device.temperature_celsius(),
        sm_clock_mhz=device.sm_clock_mhz(),
        memory_clock_mhz=device.memory_clock_mhz(),
    )
