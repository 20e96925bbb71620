"""The real NVML binding, over a small library compiled here."""

import ctypes
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from tests.support.fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, TIMEOUT, FakeNvml
from timing import this_machine
from timing.gpu import nvml as nvml_module
from timing.gpu.nvml import THROTTLE_FIELDS, Device, read_gpus
from timing.gpu.visible_devices import visible_devices

QUANTITIES = {
    # Name in the fake library -> the method, and the quantity of its refusal.
    "energy": (Device.energy_joules, "energy counter"),
    "power": (Device.power_watts, "power"),
    "SM clock": (Device.sm_clock_mhz, "SM clock"),
    "memory clock": (Device.memory_clock_mhz, "memory clock"),
    "temperature": (Device.temperature_celsius, "temperature"),
    "memory": (Device.memory_used_bytes, "memory"),
    "utilisation": (Device.utilisation_percent, "utilisation"),
    "samples": (lambda device: device.utilisation_samples(0), "utilisation samples"),
    "fields": (Device.throttled_seconds, "throttled time"),
    "processes": (Device.process_ids, "processes"),
    "accounting samples": (lambda device: device.process_share(os.getpid()), "process accounting"),
    "monitor": (Device.gpm_sample, "performance monitor"),
    "monitor mark": (Device.gpm_sample, "performance monitor"),
}


def first() -> Device:
    return visible_devices().devices[0]


def uuids() -> list[str]:
    return [device.uuid for device in visible_devices().devices]


def missing() -> str:
    return visible_devices().unavailable or ""


@pytest.mark.usefixtures("nvml")
def test_the_machines_gpus() -> None:
    found = read_gpus()
    assert found.unavailable is None
    assert found.driver == "555.42"
    one, other = found.gpus
    assert (one.name, one.uuid) == ("NVIDIA Fake A", "GPU-aaaa")
    assert one.memory_bytes == 80 * 2**30
    assert one.power_limit_watts == 350.0
    assert (other.name, other.uuid) == ("NVIDIA Fake B", "GPU-bbbb")


@pytest.mark.usefixtures("nvml")
def test_a_refused_value_is_none_not_zero() -> None:
    assert read_gpus().gpus[1].power_limit_watts is None


@pytest.mark.usefixtures("nvml")
def test_a_driver_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_INIT", str(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    found = read_gpus()
    assert found.gpus == ()
    assert "Driver Not Loaded" in (found.unavailable or "")
    assert visible_devices().devices == ()
    assert "Driver Not Loaded" in missing()


@pytest.mark.usefixtures("nvml")
def test_a_driver_that_starts_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_INIT", str(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    assert uuids() == []
    monkeypatch.delenv("FAKE_NVML_INIT")
    assert uuids() == ["GPU-aaaa", "GPU-bbbb"]


@pytest.mark.usefixtures("nvml")
def test_a_mismatched_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch() -> None:
        raise pynvml.NVMLLibraryMismatchError("driver and library differ")

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    assert "driver and library differ" in (read_gpus().unavailable or "")
    assert "driver and library differ" in missing()


@pytest.mark.usefixtures("nvml")
def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "0")
    assert read_gpus().unavailable == "NVML runs and sees no GPU"
    assert missing() == "NVML runs and sees no GPU"


def test_values_have_the_units_of_their_names(nvml: FakeNvml) -> None:
    nvml.set("energy", 1_234_500)
    nvml.set("power", 250_500)
    nvml.set("SM clock", 1410)
    nvml.set("memory clock", 2619)
    nvml.set("temperature", 61)
    nvml.set("memory", 3 * 2**30)
    nvml.set("utilisation", 87)
    device = first()
    assert device.energy_joules() == 1234.5
    assert device.power_watts() == 250.5
    assert device.sm_clock_mhz() == 1410
    assert device.memory_clock_mhz() == 2619
    assert device.temperature_celsius() == 61
    assert device.memory_used_bytes() == 3 * 2**30
    assert device.utilisation_percent() == 87
    assert device.unavailable == {}


def test_each_device_speaks_for_itself(nvml: FakeNvml) -> None:
    nvml.set("temperature", 61)
    nvml.set("temperature", 33, device=1)
    assert [device.temperature_celsius() for device in visible_devices().devices] == [61, 33]


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, TIMEOUT])
def test_a_refusal_is_none_and_its_reason_kept(nvml: FakeNvml, name: str, code: int) -> None:
    read, quantity = QUANTITIES[name]
    device = first()
    nvml.set("monitor", 1)
    nvml.refuse(name, code)
    assert read(device) is None
    assert device.unavailable == {quantity: str(pynvml.NVMLError(code))}
    assert nvml.marks_alive() == 0


def test_the_first_reason_is_said_once(nvml: FakeNvml) -> None:
    device = first()
    nvml.refuse("power", TIMEOUT)
    device.power_watts()
    nvml.lose()
    device.power_watts()
    assert device.unavailable == {"power": "Timeout"}


def test_an_older_driver_lacks_functions(old_nvml: FakeNvml) -> None:
    device = first()
    assert device.energy_joules() is None
    assert device.gpm_sample() is None
    assert device.process_share(os.getpid()) is None
    assert set(device.unavailable.values()) == {"Function Not Found"}
    old_nvml.process(os.getppid())
    assert device.process_ids() == (os.getppid(),)
    assert device.power_watts() == 100.0
    assert uuids() == ["GPU-aaaa", "GPU-bbbb"]


@pytest.mark.usefixtures("nvml")
def test_an_older_binding_lacks_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    device = first()
    monkeypatch.delattr(pynvml, "nvmlDeviceGetAccountingStats_v2")
    monkeypatch.delattr(pynvml, "nvmlGpmQueryDeviceSupport")
    assert device.process_share(os.getpid()) is None
    assert device.gpm_sample() is None
    assert "nvmlDeviceGetAccountingStats_v2" in device.unavailable["process accounting"]
    assert "nvmlGpmQueryDeviceSupport" in device.unavailable["performance monitor"]


def test_throttle_counters_are_nanoseconds(nvml: FakeNvml) -> None:
    for place, number in enumerate(THROTTLE_FIELDS.values()):
        nvml.set(f"field {number}", (place + 1) * 1_500_000_000)
    assert first().throttled_seconds() == {
        "software power cap": 1.5,
        "sync boost": 3.0,
        "software thermal slowdown": 4.5,
        "hardware thermal slowdown": 6.0,
        "hardware power brake": 7.5,
    }


def test_one_throttle_counter_may_be_refused(nvml: FakeNvml) -> None:
    nvml.refuse("field 269", NOT_SUPPORTED)
    device = first()
    assert set(device.throttled_seconds() or {}) == set(THROTTLE_FIELDS) - {
        "software thermal slowdown"
    }
    assert device.unavailable == {"throttled time by software thermal slowdown": "Not Supported"}
    for number in THROTTLE_FIELDS.values():
        nvml.refuse(f"field {number}", NOT_SUPPORTED)
    assert first().throttled_seconds() is None


def test_the_binding_has_the_same_throttle_fields() -> None:
    names = ("SW_POWER_CAP", "SYNC_BOOST", "SW_THERM_SLOWDOWN", "HW_THERM_SLOWDOWN")
    names += ("HW_POWER_BRAKE_SLOWDOWN",)
    found = [getattr(pynvml, f"NVML_FI_DEV_CLOCKS_EVENT_REASON_{name}") for name in names]
    assert found == list(THROTTLE_FIELDS.values())


def test_samples_are_those_after_a_moment(nvml: FakeNvml) -> None:
    device = first()
    assert device.utilisation_samples(0) == []
    for seconds, percent in ((12.5, 30), (11.0, 20), (10.0, 10)):
        nvml.sample(seconds, percent)
    assert device.utilisation_samples(10.5) == [(11.0, 20.0), (12.5, 30.0)]
    assert device.unavailable == {}


def test_success_raised_as_an_error_means_no_data(nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_SUCCESS)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetSamples", nothing)
    device = first()
    assert device.utilisation_samples(0) == []
    assert device.unavailable == {}


@pytest.mark.parametrize(("kind", "member"), list(enumerate(nvml_module._VALUE_MEMBERS)))
def test_a_value_is_read_by_its_type(kind: int, member: str) -> None:
    value = pynvml.c_nvmlValue_t()
    value.ullVal = 2**64 - 1
    setattr(value, member, 37)
    assert nvml_module._member(value, kind) == 37
    assert kind < pynvml.NVML_VALUE_TYPE_COUNT == len(nvml_module._VALUE_MEMBERS)


def test_accounting_is_in_hundredths_of_a_per_cent(nvml: FakeNvml) -> None:
    nvml.set("accounting samples", 4)
    nvml.set("accounting sum", 4 * 75 * 100)
    assert first().process_share(os.getpid()) == (4, 300.0)


def test_accounting_in_another_unit_is_refused(nvml: FakeNvml) -> None:
    nvml.set("accounting samples", 4)
    nvml.set("accounting sum", 4 * 75)
    nvml.set("accounting mean", 75)
    device = first()
    assert device.process_share(os.getpid()) is None
    assert "their units differ" in device.unavailable["process accounting"]


def test_the_monitor_gives_a_per_cent_between_marks(nvml: FakeNvml) -> None:
    nvml.set("monitor", 1)
    nvml.set("monitor percent", 62.5)
    device = first()
    begin, end = device.gpm_sample(), device.gpm_sample()
    assert device.gpm_utilization(begin, end) == 62.5
    assert device.gpm_utilization(end, begin) is None
    assert device.unavailable == {"performance monitor": "Invalid Argument"}
    device.gpm_free(begin)
    device.gpm_free(end)
    assert nvml.marks_alive() == 0


def test_a_card_without_a_monitor_says_so(nvml: FakeNvml) -> None:
    device = first()
    assert device.gpm_sample() is None
    assert device.unavailable == {"performance monitor": "this card has none"}


def test_other_processes_are_not_this_one(nvml: FakeNvml) -> None:
    device = first()
    assert device.other_process_ids() == ()
    nvml.process(os.getpid())
    nvml.process(os.getppid())
    assert device.process_ids() == tuple(sorted((os.getpid(), os.getppid())))
    assert device.other_process_ids() == (os.getppid(),)


def test_process_ids_of_another_namespace_are_not_guessed_at(nvml: FakeNvml) -> None:
    nvml.process(2**22 + 1)
    device = first()
    assert device.other_process_ids() is None
    assert "as in a container" in device.unavailable["other processes"]


@pytest.mark.parametrize("known", [(), (1,)])
def test_where_this_process_is_not_among_those_on_its_gpu_the_others_are_not_guessed_at(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, known: tuple[int, ...]
) -> None:
    """As in containers whose kernel has process numbers of its own."""
    for pid in known:
        nvml.process(pid)
    device = first()
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert device.other_process_ids() is None
    assert "as in a container" in device.unavailable["other processes"]
    nvml.process(os.getpid())
    assert device.other_process_ids() == known


@pytest.mark.parametrize(
    "struct",
    [
        "Value",
        "Memory",
        "Utilization",
        "Sample",
        "FieldValue",
        "ProcessInfo",
        "AccountingStats_v2",
        "GpmSupport",
        "GpmMetric",
    ],
)
def test_the_binding_and_c_agree_on_a_structs_size(nvml: FakeNvml, struct: str) -> None:
    python = ctypes.sizeof(getattr(pynvml, f"c_nvml{struct}_t"))
    assert python == nvml.sizeof(f"nvml{struct}") > 0


def test_it_starts_once_a_process_and_again_after_a_fork(nvml: FakeNvml) -> None:
    device = first()
    read_gpus()
    visible_devices()
    assert nvml.inits() == 1
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside torch's threads, which the child never needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # The library answers no process but the one that started it.
        told = device.temperature_celsius() == 40 and nvml.inits() == 2
        os._exit(0 if told and uuids() == ["GPU-aaaa", "GPU-bbbb"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert nvml.inits() == 1


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        (" 2 , 0 ", ["GPU-aabb", "GPU-aaaa"]),
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("gpu-aaa,GPU-aab", ["GPU-aaaa", "GPU-aabb"]),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, entries: str, expected) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entries)
    assert uuids() == expected
    assert bool(missing()) == (not expected)


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("entries", "expected", "message"),
    [
        ("0,3,1", ["GPU-aaaa"], "there is no GPU 3, only 3"),
        ("0,-1,1", ["GPU-aaaa"], "'-1' is neither an index nor"),
        ("NoDevFiles", [], "'NoDevFiles' is neither an index nor"),
        ("GPU-dddd,0", [], "no GPU or MIG instance has a UUID that begins with GPU-dddd"),
        ("GPU-aa,1", [], "2 of them has a UUID that begins with GPU-aa"),
        ("0,0", [], "GPU-aaaa is visible twice"),
    ],
)
def test_a_wrong_entry_hides_all_behind_it(
    monkeypatch: pytest.MonkeyPatch, entries: str, expected, message: str
) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entries)
    assert uuids() == expected
    assert message in missing()


@pytest.mark.usefixtures("nvml")
def test_an_index_in_cudas_own_order_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert uuids() == []
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID, name it by its UUID" in missing()
    # Where every card is named, or there is but one, the order is no matter.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert set(uuids()) == {"GPU-aaaa", "GPU-bbbb"}
    monkeypatch.setenv("FAKE_NVML_GPUS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert uuids() == ["GPU-aaaa"]


@pytest.mark.usefixtures("nvml")
def test_cuda_that_runs_is_asked_for_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA's first is NVML's second, which the environment alone would not tell.
    order = ["bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=order[index])
    )
    assert uuids() == ["GPU-bbbb"]


def test_asking_never_starts_cuda(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    def start() -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    monkeypatch.setattr(torch.cuda, "device_count", start)
    assert uuids() == ["GPU-aaaa", "GPU-bbbb"]


def test_a_lost_card_is_said_and_the_others_are_read(nvml: FakeNvml) -> None:
    nvml.lose(1)
    assert uuids() == ["GPU-aaaa"]
    assert missing() == "GPU 1 is not read: NVML says GPU is lost"


def test_under_mig_an_instance_takes_the_cards_place(nvml: FakeNvml) -> None:
    nvml.set("MIG mode", 1)
    assert uuids() == ["MIG-1111", "GPU-bbbb"]
    nvml.set("first MIG instance", 1)
    assert uuids() == ["MIG-2222", "GPU-bbbb"]
    nvml.set("first MIG instance", 2)
    assert uuids() == ["GPU-bbbb"]
    assert missing() == "GPU 0 is in MIG mode without an instance"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("MIG-2222", "MIG-2222"), ("MIG-2", "MIG-2222"), ("GPU-aaaa", "MIG-1111")],
)
def test_a_mig_instance_by_its_uuid(nvml, monkeypatch, entry: str, expected: str) -> None:
    nvml.set("MIG mode", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entry)
    assert uuids() == [expected]


def test_utilisation_under_mig_is_not_measured(nvml: FakeNvml) -> None:
    nvml.set("MIG mode", 1)
    nvml.set("monitor", 1)
    device = first()
    assert device.utilisation_percent() is None
    assert device.utilisation_samples(0) is None
    assert device.gpm_sample() is None
    assert set(device.unavailable) == {"utilisation", "utilisation samples", "performance monitor"}
    assert set(device.unavailable.values()) == {"NVML does not measure it under MIG"}
    assert device.memory_used_bytes() == 2**30


@pytest.mark.slow
def test_the_library_is_found_as_on_a_machine_with_a_driver(nvml_library: Path) -> None:
    script = "from timing import this_machine; print([g.name for g in this_machine().gpus.gpus])"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml_library.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['NVIDIA Fake A', 'NVIDIA Fake B']"


def test_this_machine_says_what_it_has_or_why_not() -> None:
    gpus = this_machine().gpus
    assert bool(gpus.gpus) != bool(gpus.unavailable)


@pytest.mark.skipif(bool(read_gpus().gpus), reason="this machine has a GPU")
def test_without_a_library_that_is_said() -> None:
    for said in (read_gpus().unavailable, visible_devices().unavailable):
        assert said is not None
        assert "NVML" in said


@pytest.mark.gpu
def test_a_real_gpu_tells_or_says_why_not() -> None:
    for device in visible_devices().devices:
        for read, quantity in QUANTITIES.values():
            assert (read(device) is None) == (quantity in device.unavailable)


@pytest.mark.gpu
def test_a_real_gpu_is_the_one_that_cuda_uses() -> None:
    found = visible_devices().devices
    torch.zeros(1, device="cuda")
    own = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for devices in (found, visible_devices().devices):
        assert [(device.uuid, device.name) for device in devices] == [
            (f"GPU-{each.uuid}", each.name) for each in own
        ]


@pytest.mark.gpu
def test_the_memory_of_a_real_gpu_grows_by_what_cuda_takes() -> None:
    torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    device, taken = first(), 2**31
    before, free = device.memory_used_bytes(), torch.cuda.mem_get_info()[0]
    held = torch.empty(taken, dtype=torch.uint8, device="cuda")
    after, left = device.memory_used_bytes(), torch.cuda.mem_get_info()[0]
    assert free - left >= held.nbytes == taken
    assert after - before == pytest.approx(free - left, rel=0.02)


@pytest.mark.gpu
def test_a_real_gpu_under_load_tells_what_torch_reads_of_it() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    device = first()
    throttled, begin = device.throttled_seconds(), time.monotonic()
    # Some seconds of work, and it is read meanwhile.
    for _ in range(500):
        torch.mm(matrix, matrix, out=torch.empty_like(matrix))
    time.sleep(0.5)
    assert device.sm_clock_mhz() == pytest.approx(torch.cuda.clock_rate(), rel=0.3)
    # Each is the mean of a window of its own, and the load is a few seconds old.
    assert device.power_watts() == pytest.approx(torch.cuda.power_draw() / 1e3, rel=0.5)
    assert device.temperature_celsius() == pytest.approx(torch.cuda.temperature(), abs=5)
    torch.cuda.synchronize()
    window = time.monotonic() - begin
    for reason, seconds in (device.throttled_seconds() or {}).items():
        assert 0 <= seconds - (throttled or {}).get(reason, seconds) <= 1.05 * window + 1


@pytest.mark.gpu
def test_another_process_on_a_real_gpu_is_seen_or_it_is_said_why_not() -> None:
    torch.zeros(1, device="cuda")
    device = first()
    code = "import torch; torch.zeros(1, device='cuda'); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        others = device.other_process_ids()
        if others is None:
            assert {"processes", "other processes"} & device.unavailable.keys()
        else:
            assert process.pid in others
        process.communicate("\n")
    assert process.pid not in (device.other_process_ids() or ())
