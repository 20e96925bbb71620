"""The study of checkpoints: each is read once, and each window evaluated at each of its ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from lawa_opt.averaging_files.choose import Selection, named_paths
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.messages import ArgumentError
from lawa_opt.studying.jobs import make_in_processes, refuse_unpicklable
from lawa_opt.studying.kept import Kept, locked
from lawa_opt.studying.looks import Ends, Function, Looks
from lawa_opt.studying.result import Point, Study, refuse_target
from lawa_opt.studying.windows import StudyWindow, study_windows
from lawa_opt.studying.write import write_study


def study(
    inputs: Iterable[str | os.PathLike[str]],
    evaluate: Function,
    *,
    model: str | Callable[[], nn.Module] | None = None,
    k: Iterable[int] = (1, 2, 4, 6, 10),
    every: Iterable[int] = (1,),
    weights: Iterable[str] = ("uniform",),
    metric: str | None = None,
    higher_is_better: bool = False,
    target: float | None = None,
    out: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    selection: Selection | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Study:
    """Evaluate windows over checkpoints at each of their ends: which would have been best?

    Each checkpoint is read once. An evaluation that raises is marked in the study, which goes on,
    and NaN or an infinity counts for nothing.

    Memory: as many checkpoints as the longest window reaches back over, and up to four.

    Args:
        inputs: checkpoints, as `average_checkpoints` takes them.
        evaluate: the function from a state dict to a metric, or to a dict of them by name; or
            "FILE.py:FUNCTION". Each metric may be a pair, of two halves of the evaluations: windows
            are chosen by the first, and the second is reported, which takes the luck of the best of
            many out. The state dict is the function's until it returns.
        model: the function that makes the model, or "FILE.py:FUNCTION"; then `evaluate` is given
            this one model, with the weights loaded.
        k: how many checkpoints to average. 1, the live weights, is always among them.
        every: 1 to average neighbouring checkpoints, 2 each second one, and so on.
        weights: names or files, as in `average_checkpoints`.
        metric: the name of the one that decides; by default the first.
        higher_is_better: of that metric.
        target: its value to reach; by default what the live weights end with.
        out: a folder for study.csv, study.json and study.png, and for the evaluations, each once it
            is made: the same study goes on from there. Those of other files, of a changed function
            file or of other weights are made anew. A function that is given itself is known by
            name, so say a new folder if it has changed.
        jobs: so many processes evaluate, each the checkpoints of a stretch. Each has a window and a
            model in memory, and reads a few checkpoints of the stretch before too. They import
            the functions, so name these as "FILE.py:FUNCTION" where they cannot, as of a notebook;
            a script calls this under `if __name__ == "__main__":`.
        selection: which of the inputs, and how they are opened; by default all, by step.
        progress: called with the evaluations made so far and all of them.

    Raises:
        CheckpointError: a checkpoint cannot be read, is unlike the others, or their order is not
            known; no window has as many checkpoints; another study is under way in `out`; all
            evaluations failed.
        ValueError: an argument that would be wrong for any checkpoints, or no such metric.
    """
    windows = study_windows(k, every, weights)
    if type(jobs) is not int or jobs < 1:
        raise ArgumentError(f"jobs must be a number of processes from 1: {jobs!r}")
    refuse_target(target)
    folder = None if out is None else Path(out)
    arguments = (named_paths(inputs), selection, windows, evaluate, model, metric)
    if jobs > 1:
        refuse_unpicklable(arguments)
    looks = Looks(*arguments)
    with locked(folder):
        kept = Kept(folder)
        points: dict[tuple[int, StudyWindow], Point] = {}
        missing: Ends = {}
        for end, wanted in looks.ends.items():
            for window in wanted:
                values = kept.values.get(looks.key(end, window))
                if values is None:
                    missing.setdefault(end, []).append(window)
                else:
                    points[end, window] = Point(looks.steps[end], window, values)
        total = sum(map(len, looks.ends.values()))
        made = looks.make(missing) if jobs == 1 else make_in_processes(jobs, arguments, missing)
        if progress is not None:
            progress(len(points), total)
        for end, point in made:
            points[end, point.window] = point
            if not point.error:
                what = f"{looks.chosen.unit or 'place'} {point.step} {point.window}"
                kept.add(looks.key(end, point.window), point.values, what)
            if progress is not None:
                progress(len(points), total)
        errors = [point.error for point in points.values()]
        if all(errors):
            raise CheckpointError(f"all {total} evaluations failed, the first by {errors[0]}")
        unit = looks.chosen.unit or "place"
        found = Study(
            points.values(),
            windows,
            unit="step" if unit == "number" else unit,
            metric=metric,
            higher_is_better=higher_is_better,
            target=target,
            notes=looks.notes,
        )
        if folder is not None:
            write_study(found, folder)
    return found
