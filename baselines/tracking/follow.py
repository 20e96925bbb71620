"""Start what publishes a comparison beside it: nothing of MLflow is on a training's time."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

from timing.secrets import hide

SECONDS_AT_END = 30.0
SECONDS_AROUND = 30.0


def publish_command(root: Path) -> str:
    """Return what publishes a folder, to be typed."""
    return shlex.join([sys.executable, "-m", "baselines", "publish", str(root)])


class Follower:
    """`publish --follow` in a process of its own, for a block that trains in a folder.

    Leaving the block waits until all is sent, for so long at the most; what is not sent then stays
    in the folder, where it is anyhow.

    Attributes:
        said: what it has printed, line by line; known after the block.
        has_failed: whether not all is in MLflow.
    """

    def __init__(self, root: Path, wait_seconds: float = SECONDS_AT_END) -> None:
        self._root = root
        self._wait_seconds = wait_seconds
        self.said: list[str] = []
        self.has_failed = False

    def __enter__(self) -> Self:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "baselines", "publish", "--follow"),
                *("--wait", str(self._wait_seconds), str(self._root)),
            ],
            # It lives until this pipe ends, also when this process is killed.
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._err,
            # An interrupt from the keyboard is for training; this one sends what there is.
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            # With more than it has itself, to start and to end.
            self._process.wait(self._wait_seconds + SECONDS_AROUND)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        out, err = _read(self._out), _read(self._err)
        self.said = out.splitlines()
        self.has_failed = self._process.returncode != 0
        if self.has_failed:
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            why = errors[-1].removeprefix("error: ") if errors else "no answer"
            self.said.append(
                hide(f"Not all is in MLflow ({why}): send it with {publish_command(self._root)}")
            )
        if self.has_failed and kind is not None:
            # Nobody asks how to review what did not end.
            print(self.said[-1])


def _read(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")
