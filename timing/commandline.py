"""How this project's command lines end."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer

# Newer versions of typer carry a click of their own, so its errors are found by way of one of them.
_CLICK_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class CommandError(Exception):
    """What went wrong although the command was used rightly: one line, and exit code 1."""


def run(app: typer.Typer) -> NoReturn:
    """Run a command and exit; what is wrong with its use is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except _CLICK_ERROR as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except CommandError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
