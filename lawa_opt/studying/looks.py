"""The looks of a study: which evaluations there are, and how each is made of files read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawa_opt.averaging_files.average import steps_for_weights
from lawa_opt.averaging_files.choose import Selection, choose_checkpoints
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.averaging_files.read import Checkpoint
from lawa_opt.studying.evaluation import Evaluation, load_function, one_line
from lawa_opt.studying.kept import key_of
from lawa_opt.studying.result import Point, no_metric
from lawa_opt.studying.windows import StudyWindow
from lawa_opt.window import Window

Function = str | Callable[..., Any]
# The windows to evaluate, by the place of their newest checkpoint.
Ends = dict[int, list[StudyWindow]]


class Looks:
    """The evaluations of a study.

    Args:
        inputs: checkpoints.
        selection: which of them, and how they are opened.
        windows: to evaluate at each checkpoint that has enough before it.
        evaluate: the function, or its name in a file.
        model: the function that makes the model, if `evaluate` is to have one.
        metric: that the function must return.

    Attributes:
        chosen: the checkpoints, oldest first.
        steps: of each.
        doubt: what the steps are, in words, if not steps.
        notes: what the reader should know of the checkpoints, and of windows that do not fit.
        ends: all windows to evaluate.

    Raises:
        CheckpointError: no window fits.
    """

    def __init__(
        self,
        inputs: Sequence[Path],
        selection: Selection | None,
        windows: Sequence[StudyWindow],
        evaluate: Function,
        model: str | Callable[[], nn.Module] | None,
        metric: str | None,
    ) -> None:
        self.evaluation = make_evaluation(evaluate, model)
        self.metric = metric
        self.chosen = choose_checkpoints(inputs, selection, ordered=True)
        self.steps, self.doubt = steps_for_weights(self.chosen)
        count = len(self.steps)
        self.ends: Ends = {
            end: [window for window in windows if window.span <= end + 1] for end in range(count)
        }
        if len(self.ends[count - 1]) < 2:
            shortest = min(window.span for window in windows if not window.is_live)
            said = f"no window fits into {count} checkpoint(s)"
            raise CheckpointError(f"{said}: the shortest reaches back over {shortest}")
        self.notes = [*self.chosen.notes, *([self.doubt] if self.doubt else [])]
        self.notes += [
            f"{window} is not evaluated: it reaches over {window.span} checkpoints, of {count}"
            for window in windows
            if window.span > count
        ]
        self._identities = [
            sorted((str(file.resolve()), *mark) for file, mark in each.fingerprints.items())
            for each in self.chosen.checkpoints
        ]

    def key(self, end: int, window: StudyWindow) -> str:
        """Return what an evaluation is known by: its files, their weights and the function."""
        taken = slice(end + 1 - window.span, end + 1)
        weights = window.weigh(self.steps[taken])
        shares = [weight / sum(weights) for weight in weights]
        return key_of(self._identities[taken], shares, self.evaluation.digest)

    def make(self, ends: Ends) -> Iterator[tuple[int, Point]]:
        """Evaluate windows, and yield the point of each beside the place of its newest checkpoint.

        Raises:
            CheckpointError: a checkpoint cannot be read.
            ArgumentError: the function does not return the metric.
        """
        for end, window, state in _averages(self.chosen.checkpoints, self.steps, ends):
            try:
                values = self.evaluation(state)
            except (Exception, SystemExit) as error:
                yield end, Point(self.steps[end], window, error=one_line(error))
                continue
            if self.metric is not None and self.metric not in values:
                raise no_metric(self.metric, values)
            yield end, Point(self.steps[end], window, values)


def make_evaluation(
    evaluate: Function, model: str | Callable[[], nn.Module] | None = None
) -> Evaluation:
    """Return the evaluation that functions or their names in files stand for."""
    functions: list[Any] = []
    digests: list[str] = []
    for each in (evaluate, model):
        if isinstance(each, str):
            function, digest = load_function(each)
            functions.append(function)
            digests.append(f"{each.rpartition(':')[2]} {digest}")
        else:
            functions.append(each)
            digests.append(getattr(each, "__qualname__", type(each).__qualname__))
    return Evaluation(functions[0], functions[1], " ".join(digests))


def _averages(
    checkpoints: Sequence[Checkpoint],
    steps: Sequence[int],
    wanted: Ends,
) -> Iterator[tuple[int, StudyWindow, dict[Any, Tensor]]]:
    """Yield the averages of wanted windows, by the place of their newest checkpoint.

    A yielded state dict is new, and its values are written over for the next one. No checkpoint is
    read that no wanted window reaches.
    """
    if not wanted:
        return
    spans = {end: max(window.span for window in windows) for end, windows in wanted.items()}
    held = max(spans.values())
    newest = Newest(checkpoints, held)
    first = min(end + 1 - span for end, span in spans.items())
    for place in range(first, max(wanted) + 1):
        if all(not end + 1 - span <= place <= end for end, span in spans.items()):
            newest.forget()
            continue
        newest.take(checkpoints[place], steps[place])
        for window in wanted.get(place, ()):
            yield place, window, newest.mean(window)


class Newest:
    """The newest checkpoints in memory, in a window like that beside a training, and their means.

    Args:
        checkpoints: all that may be taken, of one structure.
        held: how many are in memory at once.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], held: int) -> None:
        last = checkpoints[-1]
        shared = set.intersection(*({*checkpoint.ties.items()} for checkpoint in checkpoints))
        self.ties = dict(shared)
        self.names = [name for name in last.tensors if name not in self.ties]
        outs = {name: torch.empty_like(last.tensors[name], device="cpu") for name in self.names}
        self.state = {name: outs[self.ties.get(name, name)] for name in last.tensors}
        self.window = Window(held)
        self.now: list[Tensor] = []

    def forget(self) -> None:
        """Forget all snapshots."""
        self.window.clear()
        self.now = []

    def take(self, checkpoint: Checkpoint, step: int) -> None:
        """Read a checkpoint, in the place of the oldest."""
        sizes = {name: checkpoint.tensors[name].numel() for name in self.names}
        pieces = [(name, 0, size) for name, size in sizes.items() if size]
        read = [flat.detach() for flat in checkpoint.read(pieces)]
        for flat in read:
            # As trained weights: so the fastest mean is taken.
            flat.requires_grad_(flat.is_floating_point() or flat.is_complex())
        if self.now:
            replaced = zip(map(id, self.now), read, strict=True)
            self.window.rebind(dict(replaced))
        with torch.no_grad():
            self.window.collect(read, step)
        self.now = read

    def mean(self, window: StudyWindow) -> dict[Any, Tensor]:
        """Return a new state dict of the mean of a window's checkpoints, in the same memory."""
        outs = [self.state[name] for name in self.names if self.state[name].numel()]
        out_of = {id(tensor): out.view(-1) for tensor, out in zip(self.now, outs, strict=True)}
        for ring in self.window.readable(self.now):
            targets = [out_of[id(tensor)] for tensor in ring.tensors]
            ring.write_mean(targets, window.span, window.weigh)
        # New each time, as a function may rename entries, or reshape tensors in place.
        fresh = {name: self.state[name].detach() for name in self.names}
        return {name: fresh[self.ties.get(name, name)] for name in self.state}
