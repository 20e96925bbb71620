"""What a container or a job may use of its machine: made-up control groups, and bound cores."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import warm_python
from timing import this_machine
from timing.limits import core_count, free_memory_bytes, memory_bytes

MIB = 2**20


def container(
    folder: Path, version: int, groups: dict[str, dict[str, object]], own: str, root: str = "/"
) -> Path:
    """A process's /proc folder, and the tree of control groups that it is in.

    Args:
        folder: of it all.
        version: of control groups.
        groups: files by path, which begins with "/".
        own: the process's path.
        root: the path that is mounted.
    """
    mount, process = folder / "cgroup", folder / "proc"
    process.mkdir()
    for path, files in groups.items():
        place = mount / path.removeprefix(root).lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (place / name).write_text(f"{content}\n")
    kind = {1: "cgroup cgroup rw,memory,cpu", 2: "cgroup2 cgroup2 rw,nsdelegate"}[version]
    (process / "mountinfo").write_text(
        "24 1 0:22 / / rw - ext4 /dev/vda rw\n"
        f"31 24 0:28 {root} {mount} rw,relatime shared:4 - {kind}\n"
    )
    name = {1: "4:memory,cpu:", 2: "0::"}[version]
    (process / "cgroup").write_text(f"9:name=systemd:/elsewhere\n{name}{own}\n")
    return process


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_all_groups_above_counts(tmp_path: Path, version: int) -> None:
    limit, used = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }[version]
    files = {1: "total_inactive_file", 2: "inactive_file"}[version]
    groups = {
        "/job": {limit: 600 * MIB, used: 500 * MIB, "memory.stat": f"anon 7\n{files} {100 * MIB}"},
        # A larger limit inside does not lift the one around it.
        "/job/step": {limit: 900 * MIB, used: 40 * MIB, "memory.stat": f"{files} 0"},
    }
    process = container(tmp_path, version, groups, "/job/step")
    assert memory_bytes(process) == 600 * MIB
    # Of the 500 MiB that it uses, 100 are of files that were read.
    assert free_memory_bytes(process) == 200 * MIB


@pytest.mark.parametrize(
    ("version", "unlimited"),
    [(1, {"memory.limit_in_bytes": 9223372036854771712}), (2, {"memory.max": "max"}), (2, {})],
)
def test_no_limit_is_the_machine_s(tmp_path: Path, version: int, unlimited) -> None:
    process = container(tmp_path, version, {"/": unlimited, "/a": unlimited}, "/a")
    assert memory_bytes(process) == psutil.virtual_memory().total
    assert free_memory_bytes(process) <= psutil.virtual_memory().total
    assert core_count(process) == core_count()


def test_a_group_that_is_slowed_down_counts_as_full(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.high": 300 * MIB, "memory.current": 400 * MIB}
    process = container(tmp_path, 2, {"/a": files}, "/a")
    assert memory_bytes(process) == 300 * MIB
    assert free_memory_bytes(process) == 0


@pytest.mark.parametrize("own", ["/docker/4f1", "/docker/4f1/init", "/../sibling", "/docker/4f12"])
def test_a_container_that_sees_its_own_groups_alone(tmp_path: Path, own: str) -> None:
    """Its top is what the host calls /docker/4f1; the process may be named from the host's top."""
    groups = {"/docker/4f1": {"memory.limit_in_bytes": 64 * MIB, "memory.usage_in_bytes": 0}}
    process = container(tmp_path, 1, groups, own, root="/docker/4f1")
    assert memory_bytes(process) == 64 * MIB


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        (1, {"cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000}, 1),
        (1, {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000}, None),
        (2, {"cpu.max": "50000 100000"}, 1),
        (2, {"cpu.max": "max 100000"}, None),
        (2, {"cpu.max": "9900000 100000"}, None),
    ],
)
def test_a_quota_of_time_is_cores(tmp_path: Path, version: int, files, expected) -> None:
    process = container(tmp_path, version, {"/a": files}, "/a/b")
    assert core_count(process) == (expected or core_count())


TOKENS = [
    "cgroup",
    "cgroup2",
    " - ",
    " ",
    ":",
    "/",
    "memory",
    "cpu",
    ",",
    "0",
    "\n",
    "..",
    "é",
    "\0",
]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)


@given(TEXTS, TEXTS)
@example("cgroup", "cgroup - cgroup2")
def test_whatever_the_kernel_says_the_machine_s_own_is_the_most(
    tmp_path_factory: pytest.TempPathFactory, cgroup: str, mountinfo: str
) -> None:
    process = tmp_path_factory.mktemp("proc")
    (process / "cgroup").write_text(cgroup, errors="replace")
    (process / "mountinfo").write_text(mountinfo, errors="replace")
    assert 0 < memory_bytes(process) <= psutil.virtual_memory().total
    assert core_count(process) >= 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_the_fingerprint_is_of_the_cores_that_are_ours() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from timing import this_machine; print(this_machine().model_dump_json())"
    )
    done = subprocess.run(
        [warm_python.executable(), "-c", script], capture_output=True, text=True, check=True
    )
    bound = type(this_machine()).model_validate_json(done.stdout)
    assert (bound.physical_cores, bound.logical_cores) == (1, 1)
    assert this_machine().logical_cores == len(os.sched_getaffinity(0))
