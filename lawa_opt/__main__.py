"""The command `python -m lawa_opt average`: average checkpoint files."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from lawa_opt.checkpoints import average_checkpoints
from lawa_opt.files import CheckpointError

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
except ImportError as error:
    raise SystemExit(f"{error.name} is missing: pip install 'lawa-opt[files]'") from None

# Newer versions of typer carry a click of their own, so the class is found by way of a subclass.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def lawa_opt() -> None:
    """Average the latest weights (LAWA)."""


@app.command()
def average(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CKPT...",
            help="Oldest first: safetensors files or folders (also sharded), torch files.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .safetensors, .pt, .pth, .bin.")],
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
    key: Annotated[str, typer.Option(help="Where the state dict is, as state_dict.model.")] = "",
    weights: Annotated[str, typer.Option(help="uniform, linear, 1-sqrt or ema.")] = "uniform",
    decay: Annotated[float | None, typer.Option(help="The decay of ema a checkpoint.")] = None,
) -> None:
    """Average the weights in checkpoint files into one file."""
    console = Console(stderr=True)
    bar = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("average", total=None)
        average_checkpoints(
            checkpoints,
            out,
            last=last,
            key=key,
            weights=weights,
            decay=decay,
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and say in one line what went wrong.

    Returns:
        0, 1 when files cannot be averaged, 2 for wrong usage, 130 when interrupted.
    """
    # As an exception, so that the temporary file is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code: int = app(arguments, prog_name="python -m lawa_opt", standalone_mode=False) or 0
    except (CheckpointError, OSError, ImportError) as error:
        return _say(str(error), 1)
    except ClickException as error:
        return _say(error.format_message(), 2)
    except ValueError as error:
        return _say(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    return _say("interrupted: nothing was written", code) if code == 130 else code


def _say(text: str, code: int) -> int:
    print(" ".join(text.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
