"""What disturbs a measurement is noticed, and a quiet one is let be."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.support import warm_python
from tests.support.fake_nvml import NOT_SUPPORTED, FakeNvml
from timing.calibration import disturbance as noise_module
from timing.calibration.disturbance import LARGEST_OTHER_CORES, Noise, NoiseWatch
from timing.gpu.nvml import THROTTLE_FIELDS


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose processors never work."""
    times = psutil.cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    monkeypatch.setattr("timing.limits.cores", lambda: None)


def watched(seconds: float = 0.0) -> Noise:
    with NoiseWatch() as watch:
        time.sleep(seconds)
    return watch.noise()


@pytest.mark.usefixtures("nvml", "idle")
def test_a_quiet_machine_has_no_warnings() -> None:
    noise = watched(1.01)
    assert noise.warnings == ()
    assert noise.other_cores == 0
    assert noise.window_seconds > 1
    assert noise.gpu_processes == 0
    assert set((noise.throttled_seconds or {}).values()) == {0.0}
    assert noise.unavailable == ()


@pytest.mark.slow
def test_a_process_that_keeps_a_core_busy_is_noticed() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        noise = watched(2.0)
    finally:
        busy.kill()
        busy.wait()
    assert noise.other_cores > LARGEST_OTHER_CORES
    assert "cores busy: close them, or measure when the machine is idle" in noise.warnings[0]


BOUND = """
import os, sys, time
from timing.calibration.disturbance import NoiseWatch
os.sched_setaffinity(0, {int(sys.argv[1])})
with NoiseWatch() as watch:
    time.sleep(2)
print(watch.noise().model_dump_json())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_what_runs_on_cores_that_are_not_ours_is_mentioned_alone() -> None:
    here, *others = sorted(os.sched_getaffinity(0))
    if not others:
        pytest.skip("there is one core only")
    for _ in range(5):
        shared, apart = noise_beside_a_busy_core(here, others[0])
        # Everything else on this machine may come to be on our core meanwhile.
        if apart.other_cores < shared.other_cores:
            break
    assert shared.other_cores > 0.9
    assert "cores busy: close them" in shared.warnings[0]
    assert apart.cores_elsewhere > 0.9
    assert apart.other_cores < shared.other_cores


def noise_beside_a_busy_core(here: int, elsewhere: int) -> tuple[Noise, Noise]:
    """What a process bound to a core says of a loop on that core, and of one on another."""
    found = {}
    for core in (here, elsewhere):
        busy = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass",
            ]
        )
        try:
            command = [warm_python.executable(), "-c", BOUND, str(here)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            busy.kill()
            busy.wait()
        found[core] = Noise.model_validate_json(done.stdout)
    shared, apart = found.values()
    return shared, apart


@pytest.mark.slow
def test_a_core_that_the_host_gave_to_others_is_no_process_to_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = psutil.cpu_times()
    if not hasattr(begin, "steal"):
        pytest.skip("only Linux tells of stolen time")
    reads = iter([begin, begin._replace(steal=begin.steal + 1.1, user=begin.user + 0.1)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(reads))
    monkeypatch.setattr("timing.limits.cores", lambda: None)
    noise = watched(1.01)
    (reason,) = noise.warnings
    assert reason.startswith("the host of this virtual machine kept 1.2 of its cores from it")


def test_a_short_block_is_not_judged_by_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times()
    reads = iter([times, times._replace(user=times.user + 100)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(reads))
    monkeypatch.setattr("timing.limits.cores", lambda: None)
    noise = watched()
    assert noise.other_cores > 1
    assert not any("cores busy" in reason for reason in noise.warnings)
    assert any("the load of others is not judged" in why for why in noise.unavailable)


@pytest.mark.usefixtures("idle")
def test_throttling_is_noticed(nvml: FakeNvml) -> None:
    nvml.set("field 269", 1e9)
    with NoiseWatch() as watch:
        time.sleep(0.1)
        nvml.set("field 269", 1.05e9)
        nvml.set("field 269", 0.02e9, device=1)
    noise = watch.noise()
    assert (noise.throttled_seconds or {})["software thermal slowdown"] == pytest.approx(0.05)
    one, other = noise.warnings
    assert "NVIDIA Fake A (GPU-aaaa) was held back 0.05 s of" in one
    assert "by software thermal slowdown: cool it" in one
    assert "NVIDIA Fake B (GPU-bbbb) was held back 0.02 s" in other


@pytest.mark.usefixtures("idle")
def test_a_moment_of_throttling_is_recorded_and_let_be(nvml: FakeNvml) -> None:
    with NoiseWatch() as watch:
        time.sleep(0.2)
        nvml.set("field 74", 0.001e9)
    noise = watch.noise()
    assert noise.warnings == ()
    assert (noise.throttled_seconds or {})["software power cap"] == pytest.approx(0.001)


def test_every_throttle_has_a_remedy() -> None:
    assert set(noise_module._REMEDIES) == set(THROTTLE_FIELDS)


@pytest.mark.usefixtures("idle")
def test_another_process_on_the_gpu_is_noticed(nvml: FakeNvml) -> None:
    nvml.process(os.getpid())
    with NoiseWatch() as watch:
        nvml.process(os.getppid(), device=1)
    noise = watch.noise()
    assert noise.gpu_processes == 1
    (reason,) = noise.warnings
    assert f"(GPU-bbbb) was shared with 1 other process(es), {os.getppid()}: end them" in reason


@pytest.mark.usefixtures("idle")
def test_what_a_gpu_refuses_is_unavailable_and_no_quiet(nvml: FakeNvml) -> None:
    for device in (0, 1):
        nvml.refuse("fields", NOT_SUPPORTED, device)
        nvml.refuse("processes", NOT_SUPPORTED, device)
    noise = watched()
    assert noise.throttled_seconds is None
    assert noise.gpu_processes is None
    assert noise.warnings == ()
    assert "NVIDIA Fake A (GPU-aaaa): no throttled time: Not Supported" in noise.unavailable
    assert "NVIDIA Fake B (GPU-bbbb): no processes: Not Supported" in noise.unavailable


def test_a_watch_that_has_not_ended_tells_nothing() -> None:
    watch = NoiseWatch()
    with pytest.raises(RuntimeError, match="no whole block yet"):
        watch.noise()
    with watch, pytest.raises(RuntimeError, match="no whole block yet"):
        watch.noise()
    assert watch.noise().window_seconds > 0


def test_a_watch_that_is_used_again_sees_the_latest_block(nvml: FakeNvml) -> None:
    watch = NoiseWatch()
    nvml.process(os.getppid())
    with watch:
        time.sleep(0.05)
    assert watch.noise().gpu_processes == 1
    nvml.library.fake_reset()
    began = time.perf_counter()
    with watch:
        pass
    around = time.perf_counter() - began
    assert watch.noise().gpu_processes == 0
    assert watch.noise().window_seconds <= around


def test_noise_is_json() -> None:
    noise = watched()
    assert Noise.model_validate_json(noise.model_dump_json()) == noise
