"""Tell how far a command is and how long it will take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from baselines.cli.console import console, say

SECONDS_BETWEEN_LINES = 30.0
# So much of a phase must be done for its pace to be a better guess than what was expected.
_LEAST_DONE = 0.1


class Course:
    """The phases of a command, told while they run.

    On a terminal one bar with the time that is left; in a file or pipe a line at the start of each
    phase, and one every 30 s.

    Args:
        phases: how many seconds each is expected to take, by its name, in their order.
    """

    def __init__(self, phases: Mapping[str, float]) -> None:
        self._expected = dict(phases)
        self._phase = self._doing = ""
        self._fraction = 0.0
        self._began = self._phase_began = time.monotonic()
        self._has_ended = threading.Event()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        is_shown = console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True, disable=not is_shown)
        self._task = self._bar.add_task("", total=1.0, left="")
        self._pause = 1.0 if is_shown else SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        self._bar.start()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._has_ended.set()
        self._thread.join()
        self._bar.stop()

    def expect(self, phase: str, seconds: float) -> None:
        """Set what a phase is expected to take, once more is known of it."""
        self._expected[phase] = seconds

    def begin(self, phase: str) -> None:
        """Begin a phase; those before it have ended."""
        self._phase, self._doing, self._fraction = phase, "", 0.0
        self._expected.setdefault(phase, 0.0)
        self._phase_began = time.monotonic()
        if not console.is_terminal:
            say(f"{phase}: {self._left()}")
        self._show()

    def update(self, fraction: float, doing: str = "") -> None:
        """Say how much of the phase is done, from 0 to 1, and what is being done."""
        self._fraction, self._doing = fraction, doing
        self._show()

    @property
    def seconds_left(self) -> float:
        """Return how long the phase and those after it will take."""
        names = list(self._expected)
        later = names[names.index(self._phase) + 1 :] if self._phase in names else names
        taken, expected = self._taken, self._expected_here
        # What was expected is no guess once it is over.
        if self._fraction >= _LEAST_DONE or (self._fraction > 0 and taken > expected):
            here = taken * (1 - self._fraction) / self._fraction
        else:
            here = max(0.0, expected - taken)
        return here + sum(self._expected[name] for name in later)

    @property
    def _is_late(self) -> bool:
        """Return whether nothing is done of the phase in all the time that was expected."""
        return not self._fraction and 0 < self._expected_here < self._taken

    @property
    def _taken(self) -> float:
        """Return the seconds since the phase began."""
        return time.monotonic() - self._phase_began

    @property
    def _expected_here(self) -> float:
        """Return the seconds that the phase is expected to take."""
        return self._expected.get(self._phase, 0.0)

    def _tell(self) -> None:
        while not self._has_ended.wait(self._pause):
            if not console.is_terminal and self._phase:
                say(f"{self._phase}: {self._fraction:.0%}, {self._left()}")
            self._show()

    def _left(self) -> str:
        if self._is_late:
            return f"not done in the {duration(self._expected_here)} expected"
        return f"about {duration(self.seconds_left)} left"

    def _show(self) -> None:
        taken, left = time.monotonic() - self._began, self.seconds_left
        said = f"{self._phase}: {self._doing}" if self._doing else self._phase
        # So that bar and time stay where they are, and all is on one line.
        width = max(20, console.width // 2)
        said = said if len(said) <= width else f"{said[: width - 1]}…"
        done = taken / ((taken + left) or 1.0)
        self._bar.update(self._task, completed=done, description=said, left=self._left())


def duration(seconds: float) -> str:
    """Return a length of time as one says it, to some ten per cent."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    if minutes < 10:
        # In halves.
        return f"{max(1.0, round(2 * minutes) / 2):g} min"
    return f"{round(minutes)} min" if minutes < 120 else f"{minutes / 60:.1f} h"
