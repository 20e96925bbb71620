"""Signals that come while weights are being exchanged."""

from __future__ import annotations

import signal
import threading
from types import CodeType, FrameType
from typing import Any

# Those whose handlers commonly raise: KeyboardInterrupt, time limits, the end of a cluster's job.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
]


class HeldSignals:
    """Handlers that wait until a function is done.

    A handler that raises half-way leaves what the function was about, and torch's `no_grad` with
    it; before the first instruction of `__exit__`, nothing could even be put right. From `hold` to
    `release`, a handler that would run within the functions runs in `run_waiting` or `release`
    instead; elsewhere, or where it has waited already, it runs at once.

    Args:
        functions: that call `release` in the end.
        but_not_in: what they call that may take long: within it, a handler runs at once.
    """

    def __init__(self, *functions: Any, but_not_in: Any = None) -> None:
        mine = (HeldSignals.run_waiting, HeldSignals.release)
        self._codes: set[CodeType] = {function.__code__ for function in (*functions, *mine)}
        self._free: CodeType | None = getattr(but_not_in, "__code__", None)
        self._handlers: dict[int, Any] = {}
        self._waiting: list[int] = []

    def hold(self) -> None:
        """Stand in for the handlers there are; only Python's main thread runs any."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        outer = frame
        while outer is not None and outer.f_code not in self._codes:
            outer = None if outer.f_code is self._free else outer.f_back
        if outer is None or number in self._waiting:
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)

    def run_waiting(self) -> None:
        """Run the handlers that have waited."""
        while self._waiting:
            number = self._waiting.pop()
            self._handlers[number](number, None)

    def release(self) -> None:
        """Put the handlers back, and run those that have waited."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # unless somebody has set another since
                signal.signal(number, handler)
        self.run_waiting()
