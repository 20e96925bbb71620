"""The GPUs by NVIDIA's management library (NVML); the only file that imports pynvml.

A card, a driver or a permission may refuse any question. What is refused is None, never a zero that
looks like a reading, and the reason is kept once for each device and quantity.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import psutil
import pynvml
import torch
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
    unavailable: str | None


# NVMLLibraryMismatchError is no NVMLError, and a newer function may be missing from the module.
_REFUSALS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, AttributeError)

# NVML's own numbers, since older bindings lack the names; cumulative nanoseconds, each.
THROTTLE_FIELDS = {
    "software power cap": 74,
    "sync boost": 76,
    "software thermal slowdown": 269,
    "hardware thermal slowdown": 270,
    "hardware power brake": 271,
}

# The member of NVML's union of values that each nvmlValueType_t fills.
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_NO_MIG = "NVML does not measure it under MIG"

_initialised_by: int | None = None


class ProcessShare(NamedTuple):
    """Counts of the driver's accounting for one process since it began."""

    samples: int
    percent_sum: float


class Device:
    """One GPU, or one MIG instance, that this process may use.

    Each method asks NVML and gives None where it is refused; `unavailable` then says why, once for
    each quantity, with the first reason.

    Attributes:
        uuid: "GPU-…", or "MIG-…" of an instance.
        name: the card's name.
        mig: whether this is a MIG instance.
        unavailable: quantity -> reason.
    """

    def __init__(self, handle: Any, *, mig: bool = False) -> None:
        self._handle = handle
        self.mig = mig
        self.unavailable: dict[str, str] = {}
        self.uuid = _text(self._ask("uuid", "nvmlDeviceGetUUID")) or "unknown"
        self.name = _text(self._ask("name", "nvmlDeviceGetName")) or "unnamed"

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid})"

    def energy_joules(self) -> float | None:
        """Return the counter of energy used since the driver was loaded."""
        millijoules = self._ask("energy counter", "nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def power_watts(self) -> float | None:
        """Return power drawn: on newer cards the mean over the last second."""
        milliwatts = self._ask("power", "nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def sm_clock_mhz(self) -> int | None:
        """Return clock of the streaming multiprocessors."""
        return self._clock("SM clock", "NVML_CLOCK_SM")

    def memory_clock_mhz(self) -> int | None:
        """Return clock of the memory."""
        return self._clock("memory clock", "NVML_CLOCK_MEM")

    def temperature_celsius(self) -> int | None:
        """Return temperature of the GPU's die."""
        sensor = pynvml.NVML_TEMPERATURE_GPU
        celsius = self._ask("temperature", "nvmlDeviceGetTemperature", sensor)
        return None if celsius is None else int(celsius)

    def memory_used_bytes(self) -> int | None:
        """Return memory in use by all processes and the driver."""
        memory = self._ask("memory", "nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def utilisation_percent(self) -> int | None:
        """Return share of the last sample period, 1/6 to 1 s, in which any kernel was resident."""
        if self.mig:
            self._refuse("utilisation", _NO_MIG)
            return None
        rates = self._ask("utilisation", "nvmlDeviceGetUtilizationRates")
        return None if rates is None else int(rates.gpu)

    def utilisation_samples(self, after_seconds: float) -> list[tuple[float, float]] | None:
        """Return the driver's buffered utilisation samples that ended after a moment.

        Args:
            after_seconds: seconds since the epoch.

        Returns:
            Pairs of the sample's end, in seconds since the epoch, and its per cent, oldest first;
            empty where there is none yet.
        """
        if self.mig:
            self._refuse("utilisation samples", _NO_MIG)
            return None
        arguments = (pynvml.NVML_GPU_UTILIZATION_SAMPLES, max(0, int(after_seconds * 1e6)))
        answer = self._ask(
            "utilisation samples", "nvmlDeviceGetSamples", *arguments, no_data=(-1, [])
        )
        if answer is None:
            return None
        kind, samples = answer
        return sorted(
            (sample.timeStamp / 1e6, float(_member(sample.sampleValue, kind))) for sample in samples
        )

    def process_share(self, pid: int) -> ProcessShare | None:
        """Return the driver's accounting (version 2) of a process; root must have enabled it."""
        stats = self._ask("process accounting", "nvmlDeviceGetAccountingStats_v2", pid)
        if stats is None:
            return None
        # In hundredths of a per cent, as nvml.h has it.
        share = ProcessShare(int(stats.sampleCount), stats.sumGpuUtil / 100)
        # The same structure has the rounded mean, so a driver that counts otherwise is noticed.
        if share.samples and abs(share.percent_sum / share.samples - stats.gpuUtilization) > 2:
            reason = (
                f"the driver's sum gives {share.percent_sum / share.samples:g}%, its mean "
                f"{stats.gpuUtilization}%: their units differ"
            )
            self._refuse("process accounting", reason)
            return None
        return share

    def gpm_sample(self) -> Any:
        """Return a sample for `gpm_utilization` by the performance monitor (Hopper and later)."""
        if self.mig:
            self._refuse("performance monitor", _NO_MIG)
            return None
        support = self._ask("performance monitor", "nvmlGpmQueryDeviceSupport")
        if support is None:
            return None
        if not support.isSupportedDevice:
            self._refuse("performance monitor", "this card has none")
            return None
        sample = self._ask("performance monitor", "nvmlGpmSampleAlloc", of_device=False)
        if sample is None:
            return None
        if self._ask("performance monitor", "nvmlGpmSampleGet", sample) is None:
            self.gpm_free(sample)
            return None
        return sample

    def gpm_utilization(self, begin: Any, end: Any) -> float | None:
        """Return per cent of the time between two samples in which any kernel was resident."""
        wanted = pynvml.c_nvmlGpmMetricsGet_t()
        wanted.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = 1
        wanted.sample1, wanted.sample2 = begin, end
        wanted.metrics[0].metricId = pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL
        quantity = "performance monitor"
        if self._ask(quantity, "nvmlGpmMetricsGet", wanted, of_device=False) is None:
            return None
        metric = wanted.metrics[0]
        if metric.nvmlReturn != pynvml.NVML_SUCCESS:
            self._refuse(quantity, str(pynvml.NVMLError(metric.nvmlReturn)))
            return None
        return float(metric.value)

    def gpm_free(self, sample: Any) -> None:
        """Give a sample's memory back to the driver."""
        self._ask("performance monitor", "nvmlGpmSampleFree", sample, of_device=False)

    def throttled_seconds(self) -> dict[str, float] | None:
        """Return the counters of time in which the clocks were held down, by reason.

        A reason that is refused is left out; None where none is told.
        """
        fields = self._ask(
            "throttled time", "nvmlDeviceGetFieldValues", list(THROTTLE_FIELDS.values())
        )
        if fields is None:
            return None
        seconds = {}
        for reason, field in zip(THROTTLE_FIELDS, fields, strict=True):
            if field.nvmlReturn == pynvml.NVML_SUCCESS:
                seconds[reason] = _member(field.value, field.valueType) / 1e9
            else:
                refusal = str(pynvml.NVMLError(field.nvmlReturn))
                self._refuse(f"throttled time by {reason}", refusal)
        return seconds or None

    def process_ids(self) -> tuple[int, ...] | None:
        """Return the processes that compute or draw on the device."""
        try:
            _initialise()
            running = _running("Compute", self._handle)
        except _REFUSALS as refusal:
            self._refuse("processes", str(refusal))
            return None
        # Cards for computing alone refuse to tell who draws.
        with contextlib.suppress(*_REFUSALS):
            running += _running("Graphics", self._handle)
        return tuple(sorted({int(process.pid) for process in running}))

    def other_process_ids(self) -> tuple[int, ...] | None:
        """Return the processes on the device but this one; None where they cannot be told apart."""
        ids = self.process_ids()
        if ids is None:
            return None
        # With CUDA at work on its only device, this process is one of them, if it is known as such.
        is_here = torch.cuda.is_initialized() and torch.cuda.device_count() == 1
        if (is_here and os.getpid() not in ids) or not all(map(psutil.pid_exists, ids)):
            reason = (
                "the driver counts processes otherwise than this process does, as in a container, "
                "so it cannot be told from others"
            )
            self._refuse("other processes", reason)
            return None
        return tuple(pid for pid in ids if pid != os.getpid())

    def _clock(self, quantity: str, constant: str) -> int | None:
        mhz = self._ask(quantity, "nvmlDeviceGetClockInfo", getattr(pynvml, constant))
        return None if mhz is None else int(mhz)

    def _ask(
        self,
        quantity: str,
        function: str,
        *arguments: Any,
        of_device: bool = True,
        no_data: Any = None,
    ) -> Any:
        """Return the function's answer, or None with the reason kept.

        Args:
            quantity: what the answer would tell.
            function: of pynvml.
            arguments: after the device's handle.
            of_device: whether the function takes the handle.
            no_data: the answer where NVML has no data yet, which is no refusal.
        """
        try:
            _initialise()
            handle = (self._handle,) if of_device else ()
            answer = getattr(pynvml, function)(*handle, *arguments)
        except _REFUSALS as refusal:
            if no_data is not None and getattr(refusal, "value", None) in _NO_DATA:
                return no_data
            self._refuse(quantity, str(refusal))
            return None
        # nvmlGpmSampleFree answers nothing where it succeeds.
        return True if answer is None else answer

    def _refuse(self, quantity: str, reason: str) -> None:
        self.unavailable.setdefault(quantity, reason)


# The binding raises these where there is nothing to tell, the first of them for "success".
_NO_DATA = (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND)


def read_gpus() -> Gpus:
    """Ask NVML for the machine's GPUs; never raises without a GPU, driver or permission."""
    try:
        _initialise()
    except _REFUSALS as refusal:
        return Gpus(driver=None, gpus=(), unavailable=f"no GPU is read: NVML says {refusal}")
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return Gpus(
            driver=_text(_or_none("nvmlSystemGetDriverVersion")),
            gpus=tuple(_gpu(handle) for handle in handles),
            unavailable=None if handles else "NVML runs and sees no GPU",
        )
    except _REFUSALS as refusal:
        return Gpus(
            driver=None, gpus=(), unavailable=f"the GPUs cannot be read: NVML says {refusal}"
        )


class Card(NamedTuple):
    """A card as a whole; its `device` is None where NVML refuses even to name it."""

    device: Device | None
    refusal: str | None
    mig_mode: bool
    instances: tuple[Device, ...]


def read_cards() -> list[Card] | str:
    """Return the machine's cards in NVML's order, or why none can be read."""
    try:
        _initialise()
        return [_card(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except _REFUSALS as refusal:
        return f"no GPU is read: NVML says {refusal}"


def _card(index: int) -> Card:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except _REFUSALS as refusal:
        return Card(None, f"NVML says {refusal}", mig_mode=False, instances=())
    mode = _or_none("nvmlDeviceGetMigMode", handle)
    mig_mode = mode is not None and bool(mode[0])
    instances = []
    for place in range(_or_none("nvmlDeviceGetMaxMigDeviceCount", handle) or 0 if mig_mode else 0):
        # Places without an instance are refused.
        instance = _or_none("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        if instance is not None:
            instances.append(Device(instance, mig=True))
    return Card(Device(handle), None, mig_mode, tuple(instances))


def _initialise() -> None:
    """Start NVML once a process, so again after a fork; raises what NVML raises."""
    global _initialised_by
    if _initialised_by != os.getpid():
        pynvml.nvmlInit()
        _initialised_by = os.getpid()


def _gpu(handle: Any) -> Gpu:
    memory = _or_none("nvmlDeviceGetMemoryInfo", handle)
    milliwatts = _or_none("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Gpu(
        name=_text(_or_none("nvmlDeviceGetName", handle)) or "unnamed",
        uuid=_text(_or_none("nvmlDeviceGetUUID", handle)) or "unknown",
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_watts=None if milliwatts is None else milliwatts / 1000,
    )


def _or_none(function: str, *arguments: Any) -> Any:
    """Return the function's answer, or None where card, driver or a permission refuses it."""
    try:
        return getattr(pynvml, function)(*arguments)
    except _REFUSALS:
        return None


def _running(kind: str, handle: Any) -> list[Any]:
    """Return the processes on a device, "Compute" or "Graphics"."""
    function = f"nvmlDeviceGet{kind}RunningProcesses"
    try:
        return list(getattr(pynvml, function)(handle))
    except pynvml.NVMLLibraryMismatchError:
        # A driver older than the binding.
        return list(getattr(pynvml, f"{function}_v2")(handle))


def _member(value: Any, kind: int) -> float:
    """Return what an nvmlValue_t holds."""
    return float(getattr(value, _VALUE_MEMBERS[kind]))


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
