"""The step that a checkpoint was taken after, by its name, by its files and beside them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa_opt.averaging_files.find import WEIGHTS_FILES, reading

Label = tuple[str, ...]  # the word before a number and the unit after it

NUMBER = re.compile(r"([^\W\d_]*)[\W_]*(\d+(?:\.\d+)*)(?=([^\W\d_]*))")
STEPS = {"step", "steps", "iter", "iters", "iteration", "iterations"}
EPOCHS = {"epoch", "epochs"}
# What training loops call it; the first that all files have is taken, and the coarsest is last.
IN_FILES = ("global_step", "step", "iteration", "iter", "iter_num", "epoch")
# A larger one would be no step, and a name may be all digits.
MOST_DIGITS = 18


@dataclass(frozen=True)
class Steps:
    """The steps of checkpoints, and what they are known from.

    Attributes:
        values: a step for each checkpoint.
        unit: "step", "epoch" or, where a name does not say what it counts, "number".
        source: what the values are, in words.
    """

    values: tuple[int, ...]
    unit: str
    source: str

    def order(self) -> list[int]:
        """Return the places of the checkpoints from the lowest step to the highest."""
        return sorted(range(len(self.values)), key=self.values.__getitem__)


def numbers_in(path: Path) -> dict[Label, str]:
    """Return the numbers of a path by what stands around them; a label said again grows longer."""
    found: dict[Label, str] = {}
    for part in reversed(Path(os.path.abspath(path)).parts):  # noqa: PTH100 (links stay links)
        for word, number, unit in reversed(NUMBER.findall(part)):
            label: Label = (word.lower(), unit.lower())
            while label in found:
                label += ("",)
            found[label] = number
    return found


def steps_in(entries: Mapping[Any, Any]) -> dict[str, int]:
    """Return what a file says of its step, by the names that training loops use."""
    found = {}
    for name in IN_FILES:
        value: Any = entries.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
            value = value.item()
        if isinstance(value, str) and value.isdecimal() and len(value) <= MOST_DIGITS:
            value = int(value)
        if hasattr(value, "item") and not isinstance(value, Tensor):  # numpy's
            value = value.item()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value < 10**MOST_DIGITS:
            found[name] = value
    return found


def step_beside(path: Path) -> int | None:
    """Return `global_step` of the trainer_state.json that transformers writes into a checkpoint."""
    folder = path if path.is_dir() else path.parent
    if folder == path.parent and path.name not in WEIGHTS_FILES:
        return None  # of a folder with several checkpoints, of which it tells none
    state = folder / "trainer_state.json"
    if not state.is_file():
        return None
    with reading(state):
        held = json.loads(state.read_text(encoding="utf-8"))
        return steps_in(held if isinstance(held, dict) else {}).get("global_step")


def steps_by_name(paths: Sequence[Path]) -> list[Steps]:
    """Return the whole numbers that all names have with the same words around them."""
    numbers = [numbers_in(path) for path in paths]
    found = []
    for label in numbers[0]:
        texts = [each.get(label, "") for each in numbers]
        if not all(text.isdecimal() and len(text) <= MOST_DIGITS for text in texts):
            continue
        word, *rest = label
        if word in STEPS | EPOCHS and not any(rest):
            unit = "step" if word in STEPS else "epoch"
            found.append(Steps(tuple(map(int, texts)), unit, f"the {unit}s in their names"))
        elif len({*texts}) == len(texts) > 1:
            found.append(Steps(tuple(map(int, texts)), "number", "the numbers in their names"))
    # A metric may stand beside; and of several numbers that say not what they count, none is known.
    said = [each for each in found if each.unit != "number"]
    return said or (found if len(found) == 1 else [])


def steps_by_file(inside: Sequence[Mapping[str, int]]) -> list[Steps]:
    """Return the steps that all files say, by the names that they have for it."""
    found = []
    for name in IN_FILES:
        if all(name in each for each in inside):
            unit = "epoch" if name == "epoch" else "step"
            values = tuple(each[name] for each in inside)
            found.append(Steps(values, unit, f"the {name} in the files"))
    return found


def steps_beside(paths: Sequence[Path]) -> list[Steps]:
    """Return the steps of the folders' trainer_state.json, if all have one."""
    values = [step_beside(path) for path in paths]
    known = tuple(value for value in values if value is not None)
    if len(known) < len(paths):
        return []
    return [Steps(known, "step", "the global_step in their trainer_state.json")]


def best_steps(candidates: Sequence[Steps], paths: Sequence[Path]) -> Steps | None:
    """Return the finest of the steps that tell all checkpoints apart.

    Raises:
        ValueError: two of them give different orders.
    """
    apart = [each for each in candidates if len({*each.values}) == len(each.values)]
    for one, other in pairwise(apart):
        for a, b in pairwise(one.order()):
            if other.values[a] > other.values[b]:
                raise ValueError(
                    f"{one.source} and {other.source} disagree: {paths[a]} has {one.values[a]} and "
                    f"{other.values[a]}, {paths[b]} has {one.values[b]} and {other.values[b]}"
                )
    ranks = {"step": 0, "epoch": 1, "number": 2}
    return min(apart, key=lambda each: ranks.get(each.unit, 3), default=None)


def equal_steps(candidates: Sequence[Steps], paths: Sequence[Path]) -> str:
    """Return which checkpoints no steps tell apart, in words; nothing if no steps are known."""
    for each in candidates:
        for a, b in pairwise(each.order()):
            if each.values[a] == each.values[b]:
                return f", and {each.source}: {each.values[a]} for {paths[a]} and {paths[b]}"
    return ""


def odd_steps(steps: Steps | None, inside: Sequence[Steps], paths: Sequence[Path]) -> list[str]:
    """Return what is odd about steps of which the order is none the less known, in words."""
    notes = []
    for each in inside:
        if each.unit != "step":
            continue
        if same := equal_steps([each], paths):
            notes.append(f"{same.removeprefix(', and ')}, and each counts")
        unlike = [] if steps is None or steps.unit != "step" else steps.values
        for path, a, b in zip(paths, unlike, each.values, strict=False):
            if steps and steps.source != each.source and a != b:
                said = f"{steps.source} and {each.source} differ, as {a} and {b} of {path}"
                notes.append(f"{said}: the first are taken")
                break
    return notes
