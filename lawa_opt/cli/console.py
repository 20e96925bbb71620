"""What the commands show: lines that a terminal does not obey, and a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn


class InterruptedWork(Exception):  # noqa: N818 (it is no error)
    """An interrupt, and in one line what is left of the work."""


def printable(text: str) -> str:
    """Return text without what a terminal obeys, which names in a file may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str, *, written: str = "") -> None:
    """Print lines on standard output, or say that this failed and what is written all the same."""
    try:
        print(*map(printable, text.splitlines()), sep="\n", flush=True)
    except OSError as error:
        first = f"{written} is written, but " if written else ""
        raise OSError(f"{first}standard output cannot be: {error.strerror}") from error


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], object]]:
    """Show a bar on a terminal, moved by what is called with bytes done and bytes in all."""
    console = Console(stderr=True)
    bar = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
