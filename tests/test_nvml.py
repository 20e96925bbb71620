"""The real NVML binding, over a small library compiled here."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from timing import this_machine
from timing.nvml import read_gpus


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the fake NVML library with")
    # Without a SONAME: a later dlopen("libnvidia-ml.so.1") must not find this one.
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def fake(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


@pytest.mark.usefixtures("fake")
def test_values_and_units() -> None:
    found = read_gpus()
    assert found.absence is None
    assert found.driver == "555.42"
    first, second = found.gpus
    assert (first.name, first.uuid) == ("NVIDIA Fake A", "GPU-aaaa")
    assert first.memory_bytes == 80 * 2**30
    assert first.power_limit_watts == 350.0
    assert (second.name, second.uuid) == ("NVIDIA Fake B", "GPU-bbbb")


@pytest.mark.usefixtures("fake")
def test_a_refused_value_is_none_not_zero() -> None:
    assert read_gpus().gpus[1].power_limit_watts is None


@pytest.mark.usefixtures("fake")
def test_a_driver_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    driver_not_loaded = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    monkeypatch.setenv("FAKE_NVML_INIT", str(driver_not_loaded))
    found = read_gpus()
    assert found.gpus == ()
    assert found.absence is not None
    assert "Driver Not Loaded" in found.absence


@pytest.mark.usefixtures("fake")
def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "0")
    assert read_gpus().absence == "NVML runs and sees no GPU"


def test_the_library_is_found_as_on_a_machine_with_a_driver(library: Path) -> None:
    script = "from timing import this_machine; print([g.name for g in this_machine().gpus.gpus])"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['NVIDIA Fake A', 'NVIDIA Fake B']"


def test_this_machine_says_what_it_has_or_why_not() -> None:
    gpus = this_machine().gpus
    assert bool(gpus.gpus) != bool(gpus.absence)


@pytest.mark.skipif(bool(read_gpus().gpus), reason="this machine has a GPU")
def test_without_a_library_the_absence_is_said() -> None:
    absence = read_gpus().absence
    assert absence is not None
    assert "NVML" in absence
