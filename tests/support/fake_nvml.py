"""The small NVML library of fake_nvml.c: built, and told what to say."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, GPU_IS_LOST = 3, 4, 10, 15


def build(folder: Path, *flags: str) -> Path:
    """Compile it; without a SONAME, or a later dlopen("libnvidia-ml.so.1") would find this one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the fake NVML library with")
    path = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", path, source], check=True)
    return path


class FakeNvml:
    """What its devices tell, in NVML's own units; everything is reset by making one."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.fake_reset()

    def set(self, name: str, value: float, device: int = 0) -> None:
        self.library.fake_set(name.encode(), device, ctypes.c_double(value))

    def refuse(self, name: str, code: int, device: int = 0) -> None:
        self.library.fake_refuse(name.encode(), device, code)

    def lose(self, device: int = 0) -> None:
        self.refuse("*", GPU_IS_LOST, device)

    def sample(self, seconds: float, percent: int, device: int = 0) -> None:
        self.library.fake_sample(device, ctypes.c_ulonglong(round(seconds * 1e6)), percent)

    def process(self, pid: int, device: int = 0) -> None:
        self.library.fake_process(device, pid)

    def inits(self) -> int:
        return int(self.library.fake_inits())

    def marks_alive(self) -> int:
        return int(self.library.fake_marks_alive())

    def sizeof(self, struct: str) -> int:
        return int(self.library.fake_sizeof(struct.encode()))
