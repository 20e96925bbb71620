"""A fingerprint of the machine that computes."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from timing import limits
from timing.gpu.nvml import Gpus, read_gpus


class Machine(BaseModel):
    """What the seconds of a profile are seconds of: hardware, software and threads.

    Two fingerprints of a machine are equal while nothing that changes its speed has changed; there
    is no host name in it, so a profile can be published. Of a machine of which the process may use
    a part, as in a container, cores and memory are those of the part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    physical_cores: int | None
    logical_cores: int
    memory_bytes: int = Field(le=10**18)
    system: str
    python: str
    torch: str
    torch_threads: int
    gpus: Gpus

    def __str__(self) -> str:
        gpus = ", ".join(gpu.name for gpu in self.gpus.gpus) or "no GPU"
        return (
            f"{self.processor}, {self.logical_cores} cores, {self.memory_bytes / 2**30:.0f} GiB, "
            f"{gpus}, torch {self.torch} on {self.torch_threads} thread(s)"
        )


def this_machine() -> Machine:
    """The fingerprint of the machine and process this is called in."""
    return Machine(
        processor=_processor(),
        physical_cores=limits.physical_core_count(),
        logical_cores=limits.core_count(),
        memory_bytes=limits.memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
        gpus=read_gpus(),
    )


def _processor() -> str:
    """The processor's model name; `platform.processor()` is empty on many Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
