"""The step timer's books balance on both clocks, and its misuse is refused.

The device is a thread that works off a queue, so events are reached later, as on a GPU. It does
what a stream does; nothing in it is scripted. No test asserts how fast something is.
"""

from __future__ import annotations

import queue
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support import warm_python
from timing.clocks import step_timer as steps
from timing.clocks.phase import PhaseTally
from timing.clocks.step_timer import StepTimer


class Stream:
    """A device that runs what is launched, in order, on a thread of its own."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.events: list[StreamEvent] = []
        self.waits = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while (launched := self.work.get()) is not None:
            launched()

    def launch(self, run: Callable[[], object]) -> None:
        self.work.put(run)

    def event(self) -> StreamEvent:
        self.events.append(StreamEvent(self))
        return self.events[-1]

    def synchronize(self) -> None:
        done = threading.Event()
        self.launch(done.set)
        assert done.wait(timeout=60)

    def close(self) -> None:
        self.work.put(None)
        self.thread.join()


class StreamEvent:
    """The interface of `torch.cuda.Event` on such a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reached = threading.Event()
        self.at_seconds = float("nan")

    def record(self) -> None:
        self.reached = reached = threading.Event()

        def reach() -> None:
            self.at_seconds = time.perf_counter()
            reached.set()

        self.stream.launch(reach)

    def query(self) -> bool:
        return self.reached.is_set()

    def synchronize(self) -> None:
        self.stream.waits += 1
        assert self.reached.wait(timeout=60)

    def elapsed_time(self, end_event: Any, /) -> float:
        assert self.query(), "as CUDA does, refuse events that are not reached"
        assert end_event.query(), "as CUDA does, refuse events that are not reached"
        return float(end_event.at_seconds - self.at_seconds) * 1e3


@pytest.fixture
def stream() -> Iterator[Stream]:
    device = Stream()
    yield device
    device.close()


def a_timer(**options: Any) -> StepTimer:
    return StepTimer(**{"warm_up": 0, **options})


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


# --- Counting ----------------------------------------------------------------


def test_the_first_passes_of_each_phase_are_left_out() -> None:
    timer = StepTimer()
    around = []
    for number in range(13):
        began = time.perf_counter()
        with timer("train_step"):
            time.sleep(0.02 if number < 10 else 0.0)
        around.append(time.perf_counter() - began)
        if number < 4:
            with timer("load_data"):
                pass
        if number % 5 == 0:
            with timer("evaluate"):
                pass
    phases = timer.phases()
    train, load, evaluate = (phases[name] for name in ("train_step", "load_data", "evaluate"))
    assert (train.count, train.warm_up_count) == (3, 10)
    assert 0.2 <= train.warm_up_seconds <= sum(around[:10])
    assert 0 < train.total_seconds <= sum(around[10:])
    assert train.median_seconds is not None
    assert train.median_seconds <= sorted(around[10:])[1]
    assert (load.count, load.warm_up_count) == (0, 4)
    assert (load.median_seconds, load.spread_seconds, load.total_seconds) == (None, None, 0.0)
    assert (evaluate.count, evaluate.warm_up_count) == (3, 0)


def test_one_pass_has_no_spread() -> None:
    timer = a_timer()
    with timer("checkpoint"):
        pass
    [phase] = timer.phases().values()
    assert phase.spread_seconds is None
    assert phase.median_seconds == phase.total_seconds


def test_blocks_and_calls_measure_alike() -> None:
    timer = a_timer()
    for _ in range(2):
        with timer("a"):
            time.sleep(0.002)
        timer.start("b")
        time.sleep(0.002)
        timer.stop()
    for phase in timer.phases().values():
        assert phase.count == 2
        assert phase.clock == "host"
        assert phase.total_seconds >= 0.004


def test_processor_time_is_counted_and_sleep_is_not() -> None:
    timer = a_timer()
    with timer("busy"):
        burn(0.05)
    with timer("idle"):
        time.sleep(0.05)
    phases = timer.phases()
    assert phases["busy"].cpu_seconds >= 0.05
    assert phases["idle"].cpu_seconds < phases["busy"].cpu_seconds
    assert phases["idle"].total_seconds >= 0.05


def test_median_and_spread_are_those_of_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    add = PhaseTally.add

    def recorded(tally: Any, seconds: float, *rest: Any) -> None:
        taken.append(seconds)
        add(tally, seconds, *rest)

    monkeypatch.setattr(PhaseTally, "add", recorded)
    timer = a_timer()
    for number in range(101):
        with timer("train_step"):
            sum(range(number * 10))
    phase = timer.phases()["train_step"]
    low, middle, high = statistics.quantiles(taken, n=4)
    assert phase.median_seconds == middle
    assert phase.spread_seconds == high - low
    assert phase.total_seconds == pytest.approx(sum(taken), rel=1e-12)


def test_memory_is_bounded_and_the_sample_is_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timing.clocks.phase.MOST_SAMPLES", 2000)
    before = torch.random.get_rng_state(), random.getstate()
    tally = PhaseTally(warm_up=0)
    passes = 20_000
    for number in range(passes):
        # Every other pass is long: a sample of every n-th would see one kind alone.
        tally.add(1.0 + 2.0 * (number % 2) + number / passes, 0.0, "host")
    assert len(tally.samples) == 2000
    phase = tally.summary()
    assert phase.count == passes
    assert phase.total_seconds == pytest.approx(passes * 2.0 + (passes - 1) / 2, rel=1e-12)
    long, late = (sum(map(f, tally.samples)) / 2000 for f in (lambda s: s >= 3, lambda s: s % 1))
    # Six standard errors of a fair sample.
    assert long == pytest.approx(0.5, abs=6 * 0.5 / 2000**0.5)
    assert late == pytest.approx(0.5, abs=6 * 12**-0.5 / 2000**0.5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


# --- Nesting -----------------------------------------------------------------


def test_time_inside_is_counted_inside_alone() -> None:
    timer = a_timer()
    began = time.perf_counter()
    with timer("outer"):
        time.sleep(0.01)
        with timer("inner"):
            burn(0.03)
            timer.start("innermost")
            time.sleep(0.02)
            timer.stop()
        with timer("inner"):
            burn(0.03)
    whole = time.perf_counter() - began
    phases = timer.phases()
    total = sum(phase.total_seconds for phase in phases.values())
    # The sum is at most the whole only if nothing is counted twice, and holds all that was spent.
    assert 0.09 <= total <= whole
    assert phases["outer"].total_seconds <= whole - 0.08
    assert phases["inner"].total_seconds <= whole - 0.03
    assert phases["innermost"].total_seconds >= 0.02
    assert phases["inner"].count == 2
    assert phases["inner"].cpu_seconds >= 0.06
    assert phases["outer"].cpu_seconds <= whole - 0.08


def test_the_inner_warm_up_is_no_time_of_the_outer() -> None:
    timer = StepTimer(warm_up=1, seldom=["outer"])
    began = time.perf_counter()
    with timer("outer"), timer("inner"):
        time.sleep(0.02)
    whole = time.perf_counter() - began
    assert timer.phases()["outer"].total_seconds <= whole - 0.02


# --- Failures ----------------------------------------------------------------


@pytest.mark.parametrize("on_device", [False, True])
def test_a_pass_that_fails_is_not_counted(stream: Stream, on_device: bool) -> None:
    timer = a_timer(event=stream.event if on_device else None)

    def fail(inside: bool) -> None:
        with timer("train_step"):
            if inside:
                timer.start("forward")
            raise ZeroDivisionError

    with timer("run"):
        for inside in (True, False, True):
            with pytest.raises(ZeroDivisionError):
                fail(inside)
    with timer("train_step"):
        pass
    counts = {name: phase.count for name, phase in timer.phases().items()}
    assert counts == {"run": 1, "train_step": 1, "forward": 0}


def test_stop_needs_a_start() -> None:
    timer = a_timer()
    with pytest.raises(RuntimeError, match=r"no phase runs: start\(\) one before stop\(\)"):
        timer.stop()


def test_stop_does_not_end_a_block() -> None:
    timer = a_timer()
    with (
        timer("train_step"),
        pytest.raises(RuntimeError, match="'train_step' was begun by `with`"),
    ):
        timer.stop()
    assert timer.phases()["train_step"].count == 1


def test_a_phase_does_not_run_inside_itself() -> None:
    timer = a_timer()
    timer.start("train_step")
    with pytest.raises(RuntimeError, match="'train_step' runs already"):
        timer.start("train_step")
    with pytest.raises(RuntimeError, match="'train_step' runs already"), timer("train_step"):
        pass
    timer.stop()
    assert timer.phases()["train_step"].count == 1


def test_what_is_left_running_in_a_block_is_named() -> None:
    timer = a_timer()
    with (
        pytest.raises(RuntimeError, match=r"'evaluate' ends while 'forward'.*stop\(\) that first"),
        timer("evaluate"),
    ):
        timer.start("forward")
    with timer("evaluate"), timer("forward"):
        pass
    assert {phase.count for phase in timer.phases().values()} == {1}


def test_a_block_that_outlives_the_one_around_it_is_named() -> None:
    timer = a_timer()
    outer, inner = timer("outer"), timer("inner")
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="'outer' ends while 'inner'"):
        outer.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="'inner' was ended by the one around it"):
        inner.__exit__(None, None, None)
    assert {phase.count for phase in timer.phases().values()} == {0}


def test_one_pass_is_for_one_block() -> None:
    timer = a_timer()
    once = timer("train_step")
    with once:
        pass
    with pytest.raises(RuntimeError, match=r"'train_step' has run: call the timer anew"), once:
        pass
    assert timer.phases()["train_step"].count == 1


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, not -1"):
        StepTimer(warm_up=-1)


# --- Events ------------------------------------------------------------------


def test_the_device_is_timed_and_not_its_launch(stream: Stream) -> None:
    timer = a_timer(event=stream.event)
    for _ in range(3):
        with timer("train_step"):
            stream.launch(lambda: time.sleep(0.02))
    phase = timer.phases()["train_step"]
    assert (phase.count, phase.clock) == (3, "events")
    assert phase.median_seconds is not None
    assert phase.median_seconds >= 0.02
    assert phase.total_seconds >= 0.06


def test_a_step_waits_for_nothing_and_is_read_later(stream: Stream) -> None:
    go = threading.Event()
    timer = a_timer(event=stream.event)
    stream.launch(lambda: go.wait(60))
    for _ in range(100):
        with timer("train_step"):
            pass
    # All these steps were begun and ended while the device stood still.
    assert stream.waits == 0
    assert len(timer._pending) == 100
    go.set()
    for _ in range(100):
        stream.synchronize()
        with timer("train_step"):
            pass
    # Once the device keeps up, so does the reading: the backlog goes, and no more events are made
    # after the two of the first of these steps.
    assert stream.waits == 0
    assert len(timer._pending) <= 1
    assert len(stream.events) == 202
    assert timer.phases()["train_step"].count == 200


def test_the_number_of_pending_events_is_bounded(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "MOST_PENDING", 4)
    timer = a_timer(event=stream.event)
    for _ in range(50):
        with timer("train_step"):
            stream.launch(lambda: time.sleep(0.0005))
        assert len(timer._pending) <= 4
    assert len(stream.events) <= 2 * 6
    assert timer.phases()["train_step"].count == 50


def test_time_inside_is_counted_inside_alone_on_the_device(stream: Stream) -> None:
    timer = a_timer(event=stream.event)
    began = time.perf_counter()
    with timer("outer"):
        stream.launch(lambda: time.sleep(0.01))
        for _ in range(2):
            with timer("inner"):
                stream.launch(lambda: time.sleep(0.02))
    phases = timer.phases()
    whole = time.perf_counter() - began
    assert phases["inner"].total_seconds >= 0.04
    assert 0.01 <= phases["outer"].total_seconds <= whole - 0.04
    assert sum(phase.total_seconds for phase in phases.values()) <= whole


def test_a_phase_may_be_read_while_the_one_around_it_runs(stream: Stream) -> None:
    timer = a_timer(event=stream.event)
    with timer("outer"):
        with timer("inner"):
            stream.launch(lambda: time.sleep(0.02))
        assert timer.phases()["inner"].count == 1
        assert timer.phases()["outer"].count == 0
    assert timer.phases()["outer"].count == 1


def test_host_times_of_before_become_warm_up() -> None:
    tally = PhaseTally(warm_up=2)
    for _ in range(5):
        tally.add(0.001, 0.001, "host")
    for _ in range(6):
        tally.add(1.0, 0.001, "cuda events")
    phase = tally.summary()
    assert (phase.count, phase.median_seconds, phase.total_seconds) == (4, 1.0, 4.0)
    assert phase.warm_up_count == 7
    assert phase.warm_up_seconds == pytest.approx(2.005)
    assert phase.cpu_seconds == pytest.approx(0.004)
    assert phase.clock == "cuda events"


@pytest.mark.slow
def test_timing_does_not_initialise_cuda() -> None:
    script = (
        "import torch; from timing.clocks.step_timer import StepTimer; timer = StepTimer()\n"
        "with timer('train_step'): pass\n"
        "timer.phases(); print(torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [warm_python.executable(), "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
def test_cuda_steps_are_timed_on_the_gpu() -> None:
    torch.cuda.init()
    timer = StepTimer(warm_up=2)
    a = torch.randn(2048, 2048, device="cuda")
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(12):
        with timer("train_step"):
            b = a
            for _ in range(10):
                b = b @ a
            with timer("inner"):
                b = b @ a
    last.record()
    phases = timer.phases()
    assert {phase.clock for phase in phases.values()} == {"cuda events"}
    assert {phase.count for phase in phases.values()} == {10}
    last.synchronize()
    total = sum(phase.total_seconds + phase.warm_up_seconds for phase in phases.values())
    # The events of a pass lie between these two, so the sum is no more than what is between them.
    assert 0 < total <= first.elapsed_time(last) / 1e3 * 1.001
    assert phases["train_step"].total_seconds > phases["inner"].total_seconds


@pytest.mark.gpu
def test_cuda_events_agree_with_a_clock_that_waits_for_the_gpu() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    out = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=out)
    timer, seconds = a_timer(), 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        with timer("products"):
            for _ in range(20):
                torch.mm(matrix, matrix, out=out)
        torch.cuda.synchronize()
        seconds += time.perf_counter() - began
    phase = timer.phases()["products"]
    assert (phase.count, phase.clock) == (5, "cuda events")
    # Some 50 ms a pass, of which to wait takes a few hundredths of one.
    assert 0.9 * seconds <= phase.total_seconds <= 1.001 * seconds


def test_a_pass_may_be_named_at_its_end_or_dropped() -> None:
    timer = StepTimer(warm_up=0)
    for _ in range(3):
        timer.start("step")
        timer.start("load_data")
        timer.stop()
        timer.stop("train_step, collect")
    with timer("evaluate"):
        timer.start("nothing")
        time.sleep(0.01)
        timer.drop()
    phases = timer.phases()
    counts = {name: phase.count for name, phase in phases.items()}
    assert counts == {
        "step": 0,
        "load_data": 3,
        "train_step, collect": 3,
        "evaluate": 1,
        "nothing": 0,
    }
    # What is dropped stays with the phase around it.
    assert phases["evaluate"].total_seconds >= 0.01
    with pytest.raises(RuntimeError, match=r"no phase runs: start\(\) one before drop\(\)"):
        timer.drop()
    with timer("evaluate"), pytest.raises(RuntimeError, match=r"drop\(\) only ends what start\(\)"):
        timer.drop()
