"""The part of its machine that this process may use: a container or a job often has a part of it.

On Linux the part is set by control groups, of version 1 or 2, and by the cores that a process is
bound to; elsewhere all of the machine is taken to be there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_THIS_PROCESS = Path("/proc/self")
_PROCESSORS = Path("/sys/devices/system/cpu")


def memory_bytes(process: Path = _THIS_PROCESS) -> int:
    """Return the bytes that this process may use: the machine's, or the least of its groups'."""
    limits = (limit for limit, _ in _memory_groups(process))
    return min([psutil.virtual_memory().total, *limits])


def free_memory_bytes(process: Path = _THIS_PROCESS) -> int:
    """Return the bytes that are free for this process: the machine's, or the least of its groups'.

    What a group holds of files that were read counts as free: it is given up for what is needed.
    """
    left = (max(0, limit - used) for limit, used in _memory_groups(process))
    return min([int(psutil.virtual_memory().available), *left])


def cores() -> frozenset[int] | None:
    """Return the numbers of the cores that this process may run on; None if that is all."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    own = frozenset(os.sched_getaffinity(0))
    return own if len(own) < (os.cpu_count() or 1) else None


def core_count(process: Path = _THIS_PROCESS) -> int:
    """Return how many cores this process may keep busy: those it may run on, or a group's quota.

    Of a part of a core, which a quota may be, one is counted.
    """
    own = cores()
    count = (psutil.cpu_count() or 1) if own is None else len(own)
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(process))]))


def physical_core_count() -> int | None:
    """Return how many physical cores this process may run on; None where nothing tells."""
    if (own := cores()) is None:
        return psutil.cpu_count(logical=False)
    siblings = {_text(_PROCESSORS / f"cpu{n}" / "topology" / "thread_siblings_list") for n in own}
    return None if None in siblings else len(siblings)


def online_cores() -> list[int]:
    """Return the numbers of all cores that are online, in order; empty where nothing tells."""
    numbers: list[int] = []
    for part in (_text(_PROCESSORS / "online") or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _memory_groups(process: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each group above this process that limits memory."""
    for folder in _groups(process, "memory"):
        # "high" is where a group of version 2 is slowed down to a crawl.
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        limits = [found for name in names if (found := _number(folder / name)) is not None]
        used = _number(folder / "memory.current")
        if used is None:
            used = _number(folder / "memory.usage_in_bytes") or 0
        counters = dict(line.partition(" ")[::2] for line in _lines(folder / "memory.stat"))
        # Version 1 has one without those of the groups inside, too.
        files = counters.get("total_inactive_file") or counters.get("inactive_file") or ""
        if limits:
            yield min(limits), max(0, used - int(files if files.isdecimal() else 0))


def _quotas(process: Path) -> Iterator[float]:
    """Yield the cores' worth of time of each control group above this process that limits it."""
    for folder in _groups(process, "cpu"):
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us") or ""
            period = _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _groups(process: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group for a resource, and those above it."""
    own: dict[str | None, str] = {}
    for line in _lines(process / "cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in _lines(process / "mountinfo"):
        place, _, kind = (part.split(" ") for part in line.partition(" - "))
        hierarchy = {"cgroup": controller, "cgroup2": ""}.get(kind[0])
        if hierarchy not in own or (hierarchy and hierarchy not in kind[-1].split(",")):
            continue
        if len(place) < 5:
            continue
        root, mount = place[3:5]
        top, inside = Path(mount), Path(own[hierarchy])
        # In a container that does not see the groups above its own, that is the top.
        seen = inside.is_relative_to(root) and ".." not in inside.parts
        folder = top / inside.relative_to(root) if seen else top
        yield from [folder, *folder.parents][: len(folder.parts) - len(top.parts) + 1]


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
