"""The joules of the processors, by counters as Linux shows them, here in a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from timing.clocks import host_energy
from timing.clocks.host_energy import HostEnergy

RANGE = 262_143_328_850


class Counters:
    """A folder of counters."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.domains = {name: folder / f"intel-rapl:{n}" for n, name in enumerate(names)}
        for name, domain in self.domains.items():
            domain.mkdir(parents=True)
            (domain / "name").write_text(f"{name}\n")
            (domain / "max_energy_range_uj").write_text(f"{RANGE}\n")
            self.set(name, 0)

    def set(self, name: str, microjoules: int) -> None:
        (self.domains[name] / "energy_uj").write_text(f"{microjoules}\n")


def test_processors_and_their_memory_add_up_and_cores_are_a_part_of_them(tmp_path: Path) -> None:
    counters = Counters(tmp_path, "package-0", "package-1", "core", "dram", "psys")
    with HostEnergy(tmp_path) as energy:
        for name, used in zip(counters.domains, (2e6, 3e6, 1e6, 5e5, 9e6), strict=True):
            counters.set(name, int(used))
    assert energy.unavailable is None
    assert energy.joules == pytest.approx(2 + 3 + 0.5)


def test_a_counter_comes_round(tmp_path: Path) -> None:
    counters = Counters(tmp_path, "package-0")
    counters.set("package-0", RANGE - 1_000_000)
    with HostEnergy(tmp_path) as energy:
        counters.set("package-0", 500_000)
    assert energy.joules == pytest.approx(1.5)


def test_a_counter_that_was_reset_is_told_and_counts_nothing(tmp_path: Path) -> None:
    counters = Counters(tmp_path, "package-0")
    counters.set("package-0", RANGE // 2)
    with HostEnergy(tmp_path) as energy:
        counters.set("package-0", 0)
    assert energy.joules is None
    assert "intel-rapl:0 was reset, or may have come round twice" in (energy.unavailable or "")


def test_a_counter_that_vanishes_in_the_span_is_told(tmp_path: Path) -> None:
    counters = Counters(tmp_path, "package-0")
    with HostEnergy(tmp_path) as energy:
        (counters.domains["package-0"] / "energy_uj").unlink()
    assert energy.joules is None
    assert "cannot be read (No such file" in (energy.unavailable or "")


def test_a_long_gap_between_two_reads_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(host_energy.time, "perf_counter", lambda: now)
    counters = Counters(tmp_path, "package-0")
    with HostEnergy(tmp_path) as energy:
        # At 2 kW it may have come round many times.
        now = 3600.0
        counters.set("package-0", 1_000_000)
    assert energy.joules is None
    assert "come round twice in 3.6e+03 s" in (energy.unavailable or "")


def test_without_counters_or_a_right_to_them_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostEnergy(tmp_path / "nowhere") as energy:
        pass
    assert energy.joules is None
    assert "has no counter, as in a virtual machine" in (energy.unavailable or "")
    Counters(tmp_path, "package-0")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(HostEnergy, "_read", refuse)
    with HostEnergy(tmp_path) as energy:
        pass
    assert energy.joules is None
    assert "cannot be read (Permission denied); root may read them" in (energy.unavailable or "")
