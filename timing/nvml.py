"""What NVIDIA's management library (NVML) says of the GPUs; the only file that imports pynvml."""

from __future__ import annotations

from typing import Any

import pynvml
from pydantic import BaseModel, ConfigDict


class Gpu(BaseModel):
    """One GPU as NVML names it; None where the card or driver does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    uuid: str
    memory_bytes: int | None
    power_limit_watts: float | None


class Gpus(BaseModel):
    """The GPUs of this machine, or why none can be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    driver: str | None
    gpus: tuple[Gpu, ...]
    absence: str | None


# NVMLLibraryMismatchError is no NVMLError, and a newer function may be missing from the module.
_REFUSALS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, AttributeError)


def read_gpus() -> Gpus:
    """Ask NVML for the GPUs; never raises where there is no GPU, driver or permission."""
    try:
        pynvml.nvmlInit()
    except _REFUSALS as refusal:
        return Gpus(driver=None, gpus=(), absence=f"no GPU is read: NVML says {refusal}")
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return Gpus(
            driver=_text(_ask("nvmlSystemGetDriverVersion")),
            gpus=tuple(_gpu(handle) for handle in handles),
            absence=None if handles else "NVML runs and sees no GPU",
        )
    except _REFUSALS as refusal:
        return Gpus(driver=None, gpus=(), absence=f"the GPUs cannot be read: NVML says {refusal}")
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = _ask("nvmlDeviceGetMemoryInfo", handle)
    milliwatts = _ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Gpu(
        name=_text(_ask("nvmlDeviceGetName", handle)) or "unnamed",
        uuid=_text(_ask("nvmlDeviceGetUUID", handle)) or "unknown",
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_watts=None if milliwatts is None else milliwatts / 1000,
    )


def _ask(function: str, *arguments: Any) -> Any:
    """The function's answer, or None where the card, the driver or a permission refuses it."""
    try:
        return getattr(pynvml, function)(*arguments)
    except _REFUSALS:
        return None


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
