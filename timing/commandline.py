"""How this project's command lines speak and end.

Whatever goes wrong is one line on standard error, never a traceback. The exit code is 0 if all went
well, 1 if something went wrong although the command was used rightly, 2 if it was used wrongly, 70
for a fault of this project's own (the line says where the traceback was written), 130 if it was
interrupted, and 143 if it was ended by SIGTERM.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from timing.tracebacks import in_one_line, is_lack_of_memory, message_of, place_of, write_down

if TYPE_CHECKING:
    from collections.abc import Iterator

OUR_FAULT = os.EX_SOFTWARE
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

# Newer versions of typer carry a click of their own, so its errors are found by way of one of them.
_CLICK_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class CommandError(Exception):
    """What went wrong although the command was used rightly: one line, and exit code 1."""


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came: as an interrupt, so that all is left as after one."""


def console() -> Console:
    """A console that shows text as it is: a name may hold what rich would take for markup."""
    return Console(markup=False, emoji=False, highlight=False)


def progress_bar(console: Console) -> Progress:
    """A bar with what is done beside it, and the time so far."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def said_of(error: Exception) -> str:
    """An error's message; where a user's own code raised it, with file and line before it."""
    return in_one_line(error) if place_of(error) else message_of(error)


def run(app: typer.Typer) -> NoReturn:
    """Run a command and exit as this module says."""
    for stream in (sys.stdout, sys.stderr):
        # Not every locale has every letter.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_sigterm():
            code = int(app(standalone_mode=False) or 0)
            if sys.stdout is not None:
                sys.stdout.flush()
    except BaseException as error:
        code, line = _ending_of(error)
        if line:
            # It may be standard error that is gone.
            with suppress(OSError):
                print(f"error: {line}" if code < 128 else line, file=sys.stderr)
    sys.exit(code)


def _ending_of(error: BaseException) -> tuple[int, str]:
    """Exit code, and the line to say."""
    # What typer takes for the end of its input.
    if isinstance(error, typer.Abort) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _CLICK_ERROR):
        return error.exit_code, _one_line(error.format_message())
    if isinstance(error, CommandError):
        return 1, _one_line(str(error))
    if isinstance(error, _TerminatedError):
        return TERMINATED, "ended by SIGTERM"
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if place_of(error):
        return 1, in_one_line(error)
    if isinstance(error, SystemExit):
        # Of a library, which has said why.
        return error.code if isinstance(error.code, int) else 1, ""
    if is_lack_of_memory(error):
        return 1, f"not enough memory: {message_of(error)}"
    if isinstance(error, OSError):
        return 1, _of_the_system(error)
    return OUR_FAULT, (
        f"this is a fault of lawa-opt, not of yours: {in_one_line(error)}; please report it: "
        f"{write_down(error)}"
    )


def _of_the_system(error: OSError) -> str:
    where = error.filename
    if where is None and _is_output_gone():
        where = "standard output"
    said = error.strerror or message_of(error)
    return said if where is None else f"{where}: {said}"


def _is_output_gone() -> bool:
    """Whether nothing can be written to standard output; then nothing is tried again at the end."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _one_line(text: str) -> str:
    return message_of(Exception(text))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs as an interrupt does, but under `torchrun`.

    There a process may wait for another one where it would not hear of it.
    """

    def end(*_: object) -> NoReturn:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread() or "WORLD_SIZE" in os.environ:
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
