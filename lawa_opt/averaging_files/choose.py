"""Which checkpoints are meant, in which order: from what a user names to opened checkpoints.

The one way from INPUTS to checkpoints, for `average`, `verify` and whatever else reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa_opt.averaging_files.distributed import open_checkpoint
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.averaging_files.folders import expanded
from lawa_opt.averaging_files.order import (
    by_number,
    copies_by_step,
    distinct_paths,
    identity_of,
    unnumbered,
)
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.averaging_files.steps import (
    Steps,
    best_steps,
    equal_steps,
    odd_steps,
    steps_beside,
    steps_by_file,
    steps_by_name,
)
from lawa_opt.averaging_files.structure import check_same_structure, refuse_idle_prefixes
from lawa_opt.messages import ArgumentError

GIVEN = 'name those meant, or take all as given, oldest first: order="given" (--order given)'


@dataclass(frozen=True)
class Selection:
    """Which of the checkpoints are taken, oldest first, and how they are opened.

    Attributes:
        order: "number", by step; or "given", oldest first.
        key: where the state dict lies in files that nest it, such as "state_dict.model".
        strip_prefix: prefixes that names lose, one after the other, such as "module.".
        last: take only the newest so many, and refuse fewer.
        from_step: take none from before this step.
        to_step: take none from after this step.
        at_least: leave out what was taken less than so many steps before the next one taken.
    """

    order: str = "number"
    key: str = ""
    strip_prefix: tuple[str, ...] = ()
    last: int | None = None
    from_step: int | None = None
    to_step: int | None = None
    at_least: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ArgumentError(f"last must be a number of checkpoints from 1: {self.last}")
        if self.order not in ("number", "given"):
            raise ArgumentError(f'order must be "number" or "given": {self.order!r}')
        if not all(self.strip_prefix):
            raise ArgumentError("a prefix to strip is empty")
        low, high = self.from_step, self.to_step
        if low is not None and high is not None and low > high:
            raise ArgumentError(f"from_step {low} is after to_step {high}")
        if self.at_least is not None and self.at_least < 1:
            raise ArgumentError(f"at_least must be a number of steps from 1: {self.at_least}")

    @property
    def by_step(self) -> bool:
        """Return whether the steps themselves decide, and not only their order."""
        return any(each is not None for each in (self.from_step, self.to_step, self.at_least))


@dataclass(frozen=True)
class Chosen:
    """Opened checkpoints, oldest first.

    Attributes:
        checkpoints: with the same names, shapes and dtypes; each has its `step`, or None.
        unit: what the steps count: "step", "epoch", "number", or "" where none are known.
        order: what the order is known from, in words.
        notes: what else the reader should know, one sentence each.
        inputs: the files of all that was given, also of what was not taken.
    """

    checkpoints: tuple[Checkpoint, ...]
    unit: str
    order: str
    notes: tuple[str, ...]
    inputs: tuple[tuple[Path, frozenset[tuple[int, ...]] | Path], ...]


def choose_checkpoints(
    inputs: Iterable[str | os.PathLike[str]],
    selection: Selection | None = None,
    *,
    ordered: bool = False,
) -> Chosen:
    """Open the checkpoints that inputs mean, oldest first, each once.

    Args:
        inputs: files of safetensors or torch, indexes of shards, folders that are a checkpoint, and
            folders of checkpoints, in any mix.
        selection: which of them; by default all.
        ordered: refuse where the order is not known. Without, it is as given then, and said to be.

    Raises:
        CheckpointError: a file is missing, damaged or unlike the others; there are too few; their
            order or steps are not known and count.
        ArgumentError: an argument that would be wrong for any files.
    """
    selection = selection or Selection()
    named = named_paths(inputs)
    given, notes, from_folders = expanded(named)
    _refuse_few(given, selection.last)
    identities = [identity_of(path) for path in given]
    paths, doubles = distinct_paths(given, identities)
    notes += doubles
    opened: dict[Path, Checkpoint] = {}
    if selection.order == "number":
        paths, left = _without_copies(paths, named, selection, opened)
        notes += left
    _refuse_few(paths, selection.last, *notes)
    counts = ordered or selection.by_step or (selection.last or len(paths)) < len(paths)
    paths, steps, how = _in_order(paths, selection, opened, counts or from_folders)
    if selection.by_step:
        paths, steps, left = _within(paths, steps, selection)
        notes += left
        _refuse_few(paths, selection.last, *left)
    if selection.last:
        paths = paths[-selection.last :]
        steps = steps and Steps(steps.values[-selection.last :], steps.unit, steps.source)
    checkpoints = [_open(path, selection, opened) for path in paths]
    if selection.order == "number":
        steps, doubts = _confirmed(paths, steps, checkpoints)
        notes += doubts
    refuse_idle_prefixes(checkpoints, selection.strip_prefix)
    for checkpoint in checkpoints:
        check_same_structure(checkpoint, checkpoints[-1])
    for checkpoint, step in zip(checkpoints, steps.values if steps else (), strict=False):
        checkpoint.step = step
    unit = steps.unit if steps else ""
    held = tuple(zip(given, identities, strict=True))
    return Chosen(tuple(checkpoints), unit, how, tuple(notes), held)


def named_paths(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return what a caller names as paths, or refuse it."""
    if isinstance(inputs, (str, os.PathLike)):
        raise ArgumentError(f"paths must be several checkpoints, not one: {os.fspath(inputs)!r}")
    named = [os.fspath(path) for path in inputs]
    if not all(named):
        raise ArgumentError("a path is empty, which would be the working folder: give it as .")
    return [Path(path) for path in named]


def _refuse_few(paths: Sequence[Path], last: int | None, *notes: str) -> None:
    if not paths:
        raise CheckpointError("; ".join(("there is no checkpoint to take", *notes)))
    if len(paths) < (last or 1):
        said = "; ".join((f"but {len(paths)} given", *notes))
        raise CheckpointError(f"{last} checkpoints are needed, {said}")


def _open(path: Path, selection: Selection, opened: dict[Path, Checkpoint]) -> Checkpoint:
    if path not in opened:
        opened[path] = open_checkpoint(path, selection.key, selection.strip_prefix)
    return opened[path]


def _without_copies(
    paths: list[Path], named: list[Path], selection: Selection, opened: dict[Path, Checkpoint]
) -> tuple[list[Path], list[str]]:
    """Return the paths without what a folder holds twice, as last.ckpt, and what is left out."""
    found = [path for path in paths if path not in named]
    if not unnumbered(found):
        return paths, []
    inside = {path: _open(path, selection, opened).steps_inside for path in found}
    copies = copies_by_step(found, inside)
    notes = [
        f"left out: {path}, which says the same step as {twin}" for path, twin in copies.items()
    ]
    return [path for path in paths if path not in copies], notes


def _in_order(
    paths: list[Path], selection: Selection, opened: dict[Path, Checkpoint], counts: bool
) -> tuple[list[Path], Steps | None, str]:
    """Return the paths, oldest first, their steps if known, and in words how that is known."""
    try:
        steps = _known_steps(paths, selection, opened)
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        if selection.by_step:
            raise CheckpointError(f"the steps of the checkpoints are not known: {error}") from error
        if selection.order == "given" or len(paths) == 1:
            return paths, None, "as given"
        if counts:
            raise CheckpointError(
                f"the order of the checkpoints counts and is not known: {error}; {GIVEN}"
            ) from error
        return paths, None, f"as given ({error}), so the newest is {paths[-1]}"
    if selection.order == "given" or len(paths) == 1:
        rising = steps and steps.order() == [*range(len(paths))]
        return paths, steps if rising else None, "as given"
    if steps is None:
        return by_number(paths), None, "in the order of the numbers in their names"
    order = steps.order()
    values = tuple(steps.values[i] for i in order)
    how = f"in the order of {steps.source}"
    return [paths[i] for i in order], Steps(values, steps.unit, steps.source), how


def _known_steps(
    paths: list[Path], selection: Selection, opened: dict[Path, Checkpoint]
) -> Steps | None:
    """Return the steps of checkpoints, or None where names tell the order and nothing the steps.

    Raises:
        ValueError: nothing gives an order, or two things give different ones.
    """
    unordered: ValueError | None = None
    names: list[Path] = paths
    try:
        names = by_number(paths) if len(paths) > 1 else paths
    except ValueError as error:
        unordered = error
    by_name = [] if unordered else steps_by_name(paths)
    candidates = [*by_name, *steps_beside(paths)]
    steps = best_steps(candidates, paths)
    if (steps is None and unordered) or (
        selection.by_step and (steps is None or steps.unit != "step")
    ):
        # To look into files takes time, so only where that is needed.
        inside = [_open(path, selection, opened).steps_inside for path in paths]
        candidates += steps_by_file(inside)
        steps = best_steps(candidates, paths)
    if steps is None and unordered:
        raise ValueError(f"{unordered}{equal_steps(candidates, paths)}") from unordered
    if steps and not unordered and [paths[i] for i in steps.order()] != names:
        raise ValueError(f"{steps.source} and the numbers in their names give other orders")
    if steps is None and selection.by_step:
        raise ValueError(f"neither names nor files tell that of {paths[0]}")
    return steps


def _within(
    paths: Sequence[Path], steps: Steps | None, selection: Selection
) -> tuple[list[Path], Steps, list[str]]:
    """Return what lies in the range and far enough apart, and in words what is left out."""
    if steps is None:
        raise CheckpointError(
            "the steps of the checkpoints are not known or do not rise in the order given, so no "
            "range of them can be taken"
        )
    low, high = selection.from_step or 0, selection.to_step
    inside = [
        i for i, step in enumerate(steps.values) if low <= step and (high is None or step <= high)
    ]
    taken: list[int] = []
    for i in reversed(inside):
        if not taken or steps.values[taken[-1]] - steps.values[i] >= (selection.at_least or 0):
            taken.append(i)
    taken.reverse()
    notes = []
    if outside := len(paths) - len(inside):
        said = f"from {low}" + ("" if high is None else f" to {high}")
        notes.append(f"left out: {outside} not {said} by {steps.source}")
    if close := len(inside) - len(taken):
        notes.append(f"left out: {close} less than {selection.at_least} before the next one taken")
    values = tuple(steps.values[i] for i in taken)
    return [paths[i] for i in taken], Steps(values, steps.unit, steps.source), notes


def _confirmed(
    paths: Sequence[Path], steps: Steps | None, checkpoints: Sequence[Checkpoint]
) -> tuple[Steps | None, list[str]]:
    """Return the finest steps known of opened files, and what is odd about them.

    They may not tell another order than names.

    Raises:
        CheckpointError: they do.
    """
    inside = steps_by_file([each.steps_inside for each in checkpoints])
    places = Steps(tuple(range(len(paths))), "place", "the order of names")
    try:
        best = best_steps([steps or places, *inside], paths)
    except ValueError as error:
        said = f"the order of the checkpoints is not known: {error}; {GIVEN}"
        raise CheckpointError(said) from error
    return None if best is places else best, odd_steps(steps, inside, paths)
