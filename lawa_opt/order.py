"""The order of checkpoints, by the numbers in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

Label = tuple[str, ...]  # the word before a number and the unit after it


NUMBER = re.compile(r"([^\W\d_]*)[\W_]*(\d+(?:\.\d+)*)(?=([^\W\d_]*))")
TIMES = {"step", "steps", "epoch", "epochs", "iter", "iters", "iteration", "iterations"}


def by_number(paths: Sequence[Path]) -> list[Path]:
    """Return the paths from the lowest number in their names to the highest.

    Numbers are compared that have the same word before them and the same unit after them. All that
    differ must agree, or else those called step, epoch or iteration, as a metric may stand beside.

    Raises:
        ValueError: the numbers give no order, and why.
    """
    numbers = [_numbers(path) for path in paths]
    shared = {label: [each.get(label, "") for each in numbers] for label in numbers[0]}
    differing = {
        label: texts for label, texts in shared.items() if all(texts) and len({*texts}) > 1
    }
    if not differing:
        fewest = min(zip(numbers, paths, strict=True), key=lambda pair: len(pair[0]))[1]
        raise ValueError(f"no number tells {fewest} from the others")
    times = [texts for (word, *rest), texts in differing.items() if word in TIMES and not any(rest)]
    try:
        return _sorted(paths, [*differing.values()])
    except ValueError:
        if not times:
            raise
    return _sorted(paths, times)


def _numbers(path: Path) -> dict[Label, str]:
    """The numbers of a path by what stands around them; a label said again grows longer."""
    found: dict[Label, str] = {}
    for part in reversed(Path(os.path.abspath(path)).parts):  # noqa: PTH100 (links stay links)
        for word, number, unit in reversed(NUMBER.findall(part)):
            label: Label = (word.lower(), unit.lower())
            while label in found:
                label += ("",)
            found[label] = number
    return found


def _sorted(paths: Sequence[Path], columns: Sequence[Sequence[str]]) -> list[Path]:
    rows = [
        tuple(tuple(map(int, text.split("."))) for text in row)
        for row in zip(*columns, strict=True)
    ]
    for texts in columns:
        # 1.9 comes before 1.10 as a version, and after it as a decimal number.
        if len({tuple(map(len, text.split(".")[1:])) for text in texts}) > 1:
            raise ValueError(f"{min(texts)} and {max(texts)} may be decimal numbers or versions")
    order = sorted(range(len(rows)), key=rows.__getitem__)
    for a, b in pairwise(order):
        if rows[a] == rows[b]:
            raise ValueError(f"{paths[a]} and {paths[b]} have equal numbers")
        if any(x > y for x, y in zip(rows[a], rows[b], strict=True)):
            raise ValueError(f"the numbers of {paths[a]} and {paths[b]} disagree")
    return [paths[i] for i in order]
