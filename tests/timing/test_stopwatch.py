"""The stopwatch against the kernel's own books, under whatever load the tests run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from timing import Stopwatch

# What the kernel's counters may be late by: a hundredth of a second on each core.
GRAIN_SECONDS = 0.02 * (psutil.cpu_count() or 1)

COMPETITOR = """
import time
print("ready", flush=True)
input()
end = time.process_time() + 0.5
while time.process_time() < end:
    pass
print("done", flush=True)
input()
"""


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def busy_seconds() -> float:
    """Processor time spent on anything, on all cores, since the machine was started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def test_blocks_add_up() -> None:
    watch = Stopwatch()
    around = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with watch:
            time.sleep(0.02)
        around += time.perf_counter() - began
        time.sleep(0.02)
    assert 0.04 <= watch.wall_seconds <= around


def test_processor_time_is_this_process_s_own() -> None:
    watch = Stopwatch()
    with watch:
        time.sleep(0.02)
        burn(0.05)
    assert 0.05 <= watch.cpu_seconds < watch.wall_seconds


@contextlib.contextmanager
def competitor() -> Iterator[subprocess.Popen[str]]:
    """Waits for a line, and then keeps a core busy for half a second."""
    command = [sys.executable, "-c", COMPETITOR]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.slow
def test_the_work_of_others_is_seen() -> None:
    with competitor() as other, Stopwatch() as watch:
        other.communicate("go\n\n")
    # It used half a second of some core, however long it had to wait for one.
    assert watch.other_cores * watch.wall_seconds >= 0.5 - GRAIN_SECONDS


@pytest.mark.slow
def test_the_work_of_children_can_be_left_out() -> None:
    watch = Stopwatch(but_children=True)
    with competitor() as child:
        before = busy_seconds()
        with watch:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            # The end of its work, while it still is there to be asked.
            assert child.stdout.readline() == "done\n"
        busy = busy_seconds() - before
        child.communicate("\n")
    # With the half second counted as others' this cannot hold.
    assert watch.other_cores * watch.wall_seconds <= busy - 0.5 + GRAIN_SECONDS


def test_own_work_is_no_load_of_others() -> None:
    watch = Stopwatch()
    before = busy_seconds()
    with watch:
        burn(0.4)
    busy = busy_seconds() - before
    # All that was busy, less what was ours: with the 0.4 s counted as others' this cannot hold.
    assert watch.other_cores * watch.wall_seconds <= busy - 0.4 + GRAIN_SECONDS


def test_nothing_measured_is_no_load() -> None:
    assert Stopwatch().other_cores == 0.0


def test_an_exception_stops_it() -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch:
            time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert watch.wall_seconds >= 0.01
    with watch:
        pass


def test_it_is_started_and_stopped_in_turn() -> None:
    watch = Stopwatch()
    with pytest.raises(RuntimeError, match=r"does not run: start\(\) it first"):
        watch.stop()
    watch.start()
    with pytest.raises(RuntimeError, match=r"runs already: stop\(\) it"):
        watch.start()
    watch.stop()
    assert watch.wall_seconds > 0
