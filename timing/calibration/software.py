"""Versions and settings of the software that a cost depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from pydantic import BaseModel, ConfigDict

from timing.gpu.nvml import read_gpus


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
    """What runs in the process this is called in, as it is set at the moment."""
    return Software(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        driver=read_gpus().driver,
        lawa_opt=_own_version(),
        torch_threads=torch.get_num_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
    )


def _own_version() -> str:
    try:
        return version("lawa-opt")
    except PackageNotFoundError:
        return "not installed"
