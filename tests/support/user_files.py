"""Files of a user's own that several tests need, and how their faults are told."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def assert_said_in_one_line(call: Callable[[], object], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as raised:
        call()
    assert re.search(said, str(raised.value))
    assert "\n" not in str(raised.value)


EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "own_workload.py"

# The example's workload, one thing done otherwise than it should be.
CHANGED = """
import dataclasses, itertools, pathlib, runpy, torch
good = runpy.run_path({example!r})["load"]()
def load():
    return dataclasses.replace(good, {change})
"""

# A method that waits in the middle of its run, until there is a file `go`.
WAITS = """
import time
from pathlib import Path
from baselines import Method, NoAveraging
from timing.rst.schedules import constant

class Waits(NoAveraging):
    def after_step(self, spent):
        while spent > 0.5 and not Path("go").exists():
            time.sleep(0.1)

def method():
    return Method("Waits", constant, lambda model, optimizer, *_: Waits(model, optimizer))
"""
