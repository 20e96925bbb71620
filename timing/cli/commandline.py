"""The way this project's command lines speak and end.

Whatever goes wrong is one line on standard error, never a traceback. The exit code is 0 if all went
well, 1 if something went wrong although the command was used rightly, 2 if it was used wrongly, 70
for a fault of this project's own (the line says where the traceback was written), and 128 plus
the number of the signal, so 130 or 143, if it was interrupted by SIGINT or SIGTERM.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from timing.calibration.environment import own_version
from timing.tracebacks import in_one_line, is_lack_of_memory, message_of, place_of, write_down

OUR_FAULT = os.EX_SOFTWARE
INTERRUPTED = 128 + signal.SIGINT

# Newer versions of typer carry a click of their own, so its errors are found by way of one of them.
_CLICK_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def _print_version(is_asked: bool) -> None:
    """Print the version of lawa-opt, and end, if that is asked."""
    if is_asked:
        print(f"lawa-opt {own_version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Print the version of lawa-opt."
    ),
]


class CommandError(Exception):
    """An error although the command was used rightly: one line, and exit code 1."""


def console() -> Console:
    """Make a console that shows text as it is: a name may hold what rich takes for markup."""
    return Console(markup=False, emoji=False, highlight=False)


def progress_bar(console: Console) -> Progress:
    """Make a bar with what is done beside it, and the time so far."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def table(title: str, *heads: str) -> Table:
    """Make a table with these columns: operations on the left, figures on the right."""
    made = Table(title=title)
    for head in heads:
        made.add_column(head, justify="left" if head == "operation" else "right")
    return made


def said_of(error: Exception) -> str:
    """Return an error's message; where a user's own code raised it, after file and line."""
    return in_one_line(error) if place_of(error) else message_of(error)


def run(app: typer.Typer) -> NoReturn:
    """Run a command and exit as this module says."""
    for stream in (sys.stdout, sys.stderr):
        # Not every locale has every letter.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    line = ""
    with _interrupts() as received:
        try:
            code = int(app(standalone_mode=False) or 0)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            code, line = _ending_of(error)
    # Some versions of typer make an exit code of an interrupt.
    if received or code == INTERRUPTED:
        code, line = 128 + (received or [signal.SIGINT])[0], "interrupted"
    # It may be standard error that is gone.
    with suppress(OSError):
        if line:
            print(line, file=sys.stderr)
    sys.exit(code)


def _ending_of(error: BaseException) -> tuple[int, str]:
    """Return the exit code, and the line to say."""
    # As which typer tells that its input has ended, whoever raised that.
    if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED, ""
    if isinstance(error, _CLICK_ERROR):
        return error.exit_code, f"error: {_one_line(error.format_message())}"
    if isinstance(error, CommandError):
        return 1, f"error: {_one_line(str(error))}"
    if place_of(error):
        return 1, f"error: {in_one_line(error)}"
    if isinstance(error, SystemExit):
        # Of a library, which may have said why.
        why = f"error: {_one_line(error.code)}" if isinstance(error.code, str) else ""
        return error.code if isinstance(error.code, int) else 1, why
    if is_lack_of_memory(error):
        return 1, f"error: not enough memory: {message_of(error)}"
    if isinstance(error, OSError):
        where = error.filename or ("standard output" if _is_output_gone() else None)
        said = error.strerror or message_of(error)
        return 1, f"error: {where}: {said}" if where else f"error: {said}"
    return OUR_FAULT, (
        f"error: this is a fault of lawa-opt and not yours, please report it: "
        f"{in_one_line(error)}; {write_down(error)}"
    )


def _is_output_gone() -> bool:
    """Return whether nothing can be written to standard output; then nothing more is tried."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _one_line(text: str) -> str:
    return message_of(Exception(text))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Let SIGTERM interrupt as SIGINT does; gives the signals that came.

    One that is ignored, as by nohup, stays so. Under `torchrun`, which ends its processes by
    SIGTERM, one may wait for another where it would hear of no interrupt, so there it just ends.
    """
    received: list[int] = []
    numbers = [signal.SIGINT] if "WORLD_SIZE" in os.environ else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def interrupt(number: int, _: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: way for number, way in before.items() if way not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, way in before.items():
            signal.signal(number, way)
