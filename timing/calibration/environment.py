"""The machine and the software of this process, as a profile records them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from timing import limits
from timing.gpu.nvml import Gpus, read_gpus


class Machine(BaseModel):
    """The machine whose seconds a profile counts: hardware, software and threads.

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
    """Return the fingerprint of the machine and process this is called in."""
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
    """Return the processor's model name; `platform.processor()` is empty on many Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Software(BaseModel):
    """Versions and flags, each able to change what a training step takes.

    None where there is none: no CUDA in this build of torch, no driver, a variable that is not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str
    torch: str
    cuda: str | None
    cudnn: int | None
    driver: str | None
    lawa_opt: str
    torch_threads: int
    float32_matmul_precision: str
    deterministic_algorithms: bool
    cudnn_benchmark: bool
    omp_wait_policy: str | None
    omp_num_threads: str | None


def this_software() -> Software:
    """Return versions and settings of the process this is called in, as they are at the moment."""
    return Software(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        driver=read_gpus().driver,
        lawa_opt=own_version(),
        torch_threads=torch.get_num_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
    )


def own_version() -> str:
    """Return the version of lawa-opt that is installed, or that none is."""
    try:
        return version("lawa-opt")
    except PackageNotFoundError:
        return "not installed"
