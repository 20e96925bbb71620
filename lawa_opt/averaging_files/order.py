"""Which checkpoints count, and in which order, by the numbers in their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from lawa_opt.averaging_files.find import CheckpointError, find_files, fingerprint
from lawa_opt.averaging_files.steps import EPOCHS, STEPS, numbers_in

LOGGER = logging.getLogger("lawa_opt")


def by_number(paths: Sequence[Path]) -> list[Path]:
    """Return the paths from the lowest number in their names to the highest.

    Numbers are compared that have the same word before them and the same unit after them. All that
    differ must agree, or else those called step, epoch or iteration, as a metric may stand beside.

    Raises:
        ValueError: the numbers give no order, and why.
    """
    numbers = [numbers_in(path) for path in paths]
    shared = {label: [each.get(label, "") for each in numbers] for label in numbers[0]}
    differing = {
        label: texts for label, texts in shared.items() if all(texts) and len({*texts}) > 1
    }
    if not differing:
        fewest = min(zip(numbers, paths, strict=True), key=lambda pair: len(pair[0]))[1]
        raise ValueError(f"no number tells {fewest} from the others")
    times = [
        texts
        for (word, *rest), texts in differing.items()
        if word in STEPS | EPOCHS and not any(rest)
    ]
    try:
        return _sorted(paths, [*differing.values()])
    except ValueError:
        if not times:
            raise
    return _sorted(paths, times)


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


def identity_of(path: Path) -> frozenset[tuple[int, ...]] | Path:
    """Return the device and inode of each file of a checkpoint."""
    try:
        return frozenset(fingerprint(file)[:2] for file in find_files(path)[1])
    except CheckpointError:
        return path  # and opening it tells why


def distinct_paths(
    paths: Sequence[Path], identities: Sequence[frozenset[tuple[int, ...]] | Path]
) -> tuple[list[Path], list[str]]:
    """Return each checkpoint once, by its own name before a link's, and notes on the others."""
    same: dict[frozenset[tuple[int, ...]] | Path, list[int]] = {}
    for i, identity in enumerate(identities):
        same.setdefault(identity, []).append(i)

    def is_second_name(i: int) -> tuple[bool, bool]:
        return paths[i].is_symlink(), not any(map(str.isdigit, paths[i].name))

    kept = {min(each, key=is_second_name): each for each in same.values()}
    notes = [
        f"{paths[i]} is {paths[first]} once more, and counts once"
        for first, each in kept.items()
        for i in each
        if i != first
    ]
    for note in notes:
        LOGGER.warning("%s", note)
    return [paths[i] for i in sorted(kept)], notes


def unnumbered(paths: Sequence[Path]) -> list[Path]:
    """Return the paths whose names hold no number, where others hold one."""
    bare = [path for path in paths if not any(map(str.isdigit, path.name))]
    return bare if len(bare) < len(paths) else []


def copies_by_step(
    paths: Sequence[Path], inside: Mapping[Path, Mapping[str, int]]
) -> dict[Path, Path]:
    """Return those without a number, as last.ckpt, that are of the same step as one with a number.

    Args:
        paths: of one folder.
        inside: what each file says of its step.
    """
    bare = unnumbered(paths)
    return {
        path: twin
        for path in bare
        for twin in paths
        if twin not in bare and inside[path] and inside[path] == inside[twin]
    }
