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

# A schedule that gives this at each fraction spent.
SCHEDULE = """
from dataclasses import dataclass
from baselines import SchedulePart

@dataclass(frozen=True)
class Own(SchedulePart):
    def factor(self, spent):
        return {}

part = Own()
"""

# An averager of the live weights with these methods in its class, and what its part declares.
AVERAGER = """
import copy, os, shutil, sys, time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from baselines import Averager, AveragerPart, Operation

class Own(Averager):
    pass
{body}

@dataclass(frozen=True)
class OwnPart(AveragerPart):
    pass
{declared}
    def begin(self, model, optimizer, workload):
        return Own(model, optimizer)

part = OwnPart()
"""


def averager(body: str, declared: str = "") -> str:
    """A file with such an averager; both texts are indented as in a class."""
    return AVERAGER.format(body=body, declared=declared)


# A recipe that waits in the middle of its run, until there is a file `go`.
WAITS = """
import time
from pathlib import Path
from dataclasses import dataclass
from baselines import Recipe, RecipePart

class Waits(Recipe):
    def step(self, batches, spent):
        while spent > 0.5 and not Path("go").exists():
            time.sleep(0.1)
        return super().step(batches, spent)

@dataclass(frozen=True)
class WaitsPart(RecipePart):
    def begin(self, model, workload, learning_rate):
        return Waits(model, workload.make_optimizer(model, learning_rate), workload)

part = WaitsPart()
"""
