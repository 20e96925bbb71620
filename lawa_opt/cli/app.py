"""The commands of `python -m lawa_opt`, and how each of them ends."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import tempfile
import traceback
from typing import Annotated, Any

try:
    import typer

    from lawa_opt.cli.average import average
    from lawa_opt.cli.leave import leave
    from lawa_opt.cli.study import study
    from lawa_opt.cli.verify import verify
except ImportError as error:
    raise SystemExit(f"{error.name} is missing: pip install 'lawa-opt[files]'") from None

from lawa_opt import __version__
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.cli.console import InterruptedWork, printable
from lawa_opt.messages import ArgumentError

# Newer versions of typer carry a click of their own, so the class is found by way of a subclass.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(average)
app.command()(leave)
app.command()(study)
app.command()(verify)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"lawa-opt {__version__}")
        raise typer.Exit


@app.callback()
def lawa_opt(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version of lawa-opt.",
        ),
    ] = False,
) -> None:
    """Average the latest weights (LAWA)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and say in one line what went wrong.

    Returns:
        0, 1 when files cannot be averaged or the result not be printed, 2 for wrong usage, 70 for a
        fault of lawa-opt, 130 when interrupted, 143 when terminated.
    """
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt  # so that it ends as Ctrl-C does, temporary files removed

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = _run_and_flush(arguments)
        return 128 + signal.SIGTERM if terminated and code == 130 else code
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run_and_flush(arguments: list[str] | None) -> int:
    logging.getLogger("lawa_opt").addHandler(logging.NullHandler())  # the summary has it all
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that a locale cannot write
    code = _run(arguments)
    try:
        print(end="", flush=True)
    except OSError as error:
        # Or the interpreter tries again when it ends, and fails with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or _say(f"standard output cannot be written: {error.strerror}", 1)
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        code: int = app(arguments, prog_name="python -m lawa_opt", standalone_mode=False) or 0
    except (CheckpointError, OSError, ImportError) as error:
        return _say(str(error), 1)
    except ClickException as error:
        return _say(error.format_message(), 2)
    except ArgumentError as error:
        return _say(str(error), 2)
    except InterruptedWork as error:
        return _say(str(error), 130)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return _say(f"memory ran out: {error}", 1)
        return _say(_own_fault(error), 70)
    return _say("interrupted: nothing was written", code) if code == 130 else code


def _own_fault(error: Exception) -> str:
    said = f"this is a fault of lawa-opt ({type(error).__name__}: {error})"
    text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
    try:
        with tempfile.NamedTemporaryFile(prefix="lawa-opt-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError as full:
        return f"{said}, and its traceback could not be kept: {full}"
    return f"{said}: please report it with {file.name}"


def _say(text: str, code: int) -> int:
    line = printable(" ".join(text.split()))
    # Names in a file may be as long as it is.
    print(line if len(line) < 3000 else f"{line[:1500]} ... {line[-1000:]}", file=sys.stderr)
    return code
