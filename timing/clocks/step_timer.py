"""A timer of the phases of a training loop: steps, data loading, evaluation, checkpoints.

    timer = StepTimer()
    with timer("train_step"):
        ...
    timer.phases()["train_step"].median_seconds

What is measured here never enters RST, which counts operations; it shows where the time went.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from timing.clocks.phase import HOST, Phase, PhaseTally

WARM_UP_PASSES = 10
# A pass of these comes once in many steps: there is nothing to spare for warming up.
SELDOM = ("evaluate", "checkpoint")

# A GPU's queue holds about as many launches, so the host is hardly ever held up by this bound.
MOST_PENDING = 1024
HARVESTED_A_PASS = 2


class Event(Protocol):
    """A mark in a device's stream of work, such as `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> None:
        """Put it behind the work launched so far."""

    def query(self) -> bool:
        """Return whether the device has come to it."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Return milliseconds from this event to a later one, both reached."""


class StepTimer:
    """Times phases; `with timer("train_step"):`, or `start("train_step")` and `stop()`.

    Phases nest, and each reports its own time alone: that of a phase inside it is left out. So no
    second is counted twice: the totals of all phases, with their warm-up, add up to what was timed.
    A pass that raises an exception is not counted, and its time stays with the phase around it.

    Once CUDA is initialised, by whoever does, passes are timed by pairs of CUDA events on the
    current stream: recorded without waiting, and read passes later, once the GPU has come to them.
    What a phase did on the host clock before that is then counted as its warm-up. This class never
    initialises CUDA. Without CUDA the host's clock is right, since CPU operations are done when
    they return.

    Median and spread are those of all passes up to 65,536 in a phase, and of a random sample of as
    many beyond, so memory is bounded. One timer serves one thread.

    Args:
        warm_up: the first passes of each phase, to be left out.
        seldom: phases without a warm-up, because their passes are few.
        event: makes the events, for accelerators other than CUDA; such as
            `lambda: torch.xpu.Event(enable_timing=True)`.

    Raises:
        ValueError: `warm_up` is negative.
    """

    def __init__(
        self,
        warm_up: int = WARM_UP_PASSES,
        seldom: Collection[str] = SELDOM,
        event: Callable[[], Event] | None = None,
    ) -> None:
        if warm_up < 0:
            raise ValueError(f"warm_up is a number of passes, 0 or more, not {warm_up!r}")
        self._warm_up = warm_up
        self._seldom = frozenset(seldom)
        self._event = event
        self._tallies: dict[str, PhaseTally] = {}
        self._running: list[_Pass] = []
        self._pending: deque[_Pass] = deque()
        self._free_events: list[Event] = []

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Return one pass of a phase, to be used in one `with`."""
        return _Pass(self, phase, is_block=True)

    def start(self, phase: str) -> None:
        """Begin a pass of a phase, inside whichever runs.

        Raises:
            RuntimeError: a pass of this phase runs already.
        """
        _Pass(self, phase, is_block=False).__enter__()

    def stop(self, phase: str | None = None) -> None:
        """End the pass begun latest; as one of `phase`, where only its end shows what it was.

        Raises:
            RuntimeError: none runs, or it belongs to a `with`.
        """
        latest = self._latest("stop")
        self._end(latest)
        if phase is not None:
            latest.tally = self._tally(phase)
        self._add(latest)

    def drop(self) -> None:
        """End the pass begun latest uncounted: its time stays with the phase around it.

        Raises:
            RuntimeError: none runs, or it belongs to a `with`.
        """
        self._abandon(self._latest("drop"))

    def _latest(self, verb: str) -> _Pass:
        if not self._running:
            raise RuntimeError(f"no phase runs: start() one before {verb}()")
        latest = self._running[-1]
        if latest.is_block:
            raise RuntimeError(
                f"phase {latest.phase!r} was begun by `with` and ends with its block: {verb}() "
                "only ends what start() began, and nothing of that runs inside it"
            )
        return latest

    def phases(self) -> dict[str, Phase]:
        """Return what each phase took so far, in the order they first began or were named.

        Waits for the GPU where passes are timed there: call it once in a while, not every step.
        """
        self._harvest(len(self._pending), wait=True)
        return {name: tally.summary() for name, tally in self._tallies.items()}

    def _tally(self, phase: str) -> PhaseTally:
        tally = self._tallies.get(phase)
        if tally is None:
            warm_up = 0 if phase in self._seldom else self._warm_up
            tally = self._tallies[phase] = PhaseTally(warm_up)
        return tally

    def _begin(self, this: _Pass) -> None:
        tally = self._tally(this.phase)
        if tally.runs:
            raise RuntimeError(
                f"phase {this.phase!r} runs already: end it before it begins again (`with` ends it "
                "even where its block raises)"
            )
        this.tally = tally
        this.outer = self._running[-1] if self._running else None
        if self._event is not None or torch.cuda.is_initialized():
            this.first = self._recorded_event()
        tally.runs = True
        self._running.append(this)
        this.cpu_began = time.process_time()
        this.began = time.perf_counter()

    def _end(self, this: _Pass) -> None:
        seconds = time.perf_counter() - this.began
        cpu_seconds = time.process_time() - this.cpu_began
        self._running.pop()
        this.tally.runs = False
        if this.outer is not None:
            this.outer.inner_seconds += seconds
            this.outer.inner_cpu_seconds += cpu_seconds
        this.cpu_seconds = cpu_seconds - this.inner_cpu_seconds
        this.seconds = seconds - this.inner_seconds
        if this.first is not None:
            this.last = self._recorded_event()

    def _add(self, this: _Pass) -> None:
        """Add a pass that has ended to its tally, or let it wait for its events."""
        if this.first is None:
            this.tally.add(this.seconds, this.cpu_seconds, HOST)
        else:
            self._pending.append(this)
            self._harvest(HARVESTED_A_PASS, wait=False)

    def _abandon(self, this: _Pass) -> list[str]:
        """End a pass and all that began inside it, uncounted; returns the names of the latter."""
        inside = self._running[self._running.index(this) + 1 :]
        for one in (this, *inside):
            self._running.remove(one)
            one.tally.runs = False
            if one.first is not None:
                self._free_events.append(one.first)
        return [one.phase for one in inside]

    def _recorded_event(self) -> Event:
        if self._free_events:
            event = self._free_events.pop()
        elif self._event is not None:
            event = self._event()
        else:
            event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _harvest(self, most: int, wait: bool) -> None:
        """Read up to `most` passes from the device, in the order they ended: inner before outer."""
        for _ in range(min(most, len(self._pending))):
            oldest = self._pending[0]
            assert oldest.first is not None
            assert oldest.last is not None
            if not oldest.last.query():
                if not wait and len(self._pending) <= MOST_PENDING:
                    return
                oldest.last.synchronize()
            self._pending.popleft()
            seconds = oldest.first.elapsed_time(oldest.last) / 1e3
            if oldest.outer is not None:
                oldest.outer.inner_event_seconds += seconds
            clock = "cuda events" if self._event is None else "events"
            seconds = max(0.0, seconds - oldest.inner_event_seconds)
            oldest.tally.add(seconds, oldest.cpu_seconds, clock)
            self._free_events += (oldest.first, oldest.last)


class _Pass:
    """One pass of a phase, from its beginning until it is added to the phase's tally."""

    __slots__ = (
        "began",
        "cpu_began",
        "cpu_seconds",
        "first",
        "inner_cpu_seconds",
        "inner_event_seconds",
        "inner_seconds",
        "is_block",
        "last",
        "outer",
        "phase",
        "seconds",
        "tally",
        "timer",
    )

    tally: PhaseTally
    began: float
    cpu_began: float
    cpu_seconds: float
    seconds: float

    def __init__(self, timer: StepTimer, phase: str, is_block: bool) -> None:
        self.timer = timer
        self.phase = phase
        self.is_block = is_block
        self.outer: _Pass | None = None
        self.first: Event | None = None
        self.last: Event | None = None
        self.inner_seconds = 0.0
        self.inner_cpu_seconds = 0.0
        self.inner_event_seconds = 0.0

    def __enter__(self) -> None:
        if hasattr(self, "tally"):
            raise RuntimeError(
                f"this pass of phase {self.phase!r} has run: call the timer anew for each `with`"
            )
        self.timer._begin(self)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        running = self.timer._running
        if kind is None and running and running[-1] is self:
            self.timer._end(self)
            self.timer._add(self)
        elif self in running:
            inside = self.timer._abandon(self)
            if kind is None:
                raise RuntimeError(
                    f"phase {self.phase!r} ends while {inside[-1]!r}, begun inside it, still runs: "
                    "stop() that first (neither is counted)"
                )
        elif kind is None:
            raise RuntimeError(
                f"phase {self.phase!r} was ended by the one around it, which was left first: end "
                "phases in the reverse order of their beginnings"
            )
