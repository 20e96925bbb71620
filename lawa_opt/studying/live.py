"""The study of a live window: its parts, evaluated beside a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import nn

from lawa_opt.optimizer import LAWA
from lawa_opt.studying.evaluation import one_line
from lawa_opt.studying.looks import Function, make_evaluation
from lawa_opt.studying.result import Point, Study
from lawa_opt.studying.windows import study_windows


class WindowStudy:
    """Evaluates the parts of a LAWA's window beside the live weights, whenever it is asked to.

    `look(opt, model)` at each evaluation of a training; `result()` is what `study` returns of
    files. Windows that reach back over more snapshots than are held are left out of a look. `every`
    counts snapshots. The training is not changed: the state dict is a copy.

    Args:
        evaluate: as in `study`.
        model: as in `study`.
        k: as in `study`.
        every: as in `study`.
        weights: as in `study`.
    """

    def __init__(
        self,
        evaluate: Function,
        *,
        model: str | Callable[[], nn.Module] | None = None,
        k: Iterable[int] = (1, 2, 4, 6, 10),
        every: Iterable[int] = (1,),
        weights: Iterable[str] = ("uniform",),
    ) -> None:
        self.windows = study_windows(k, every, weights)
        self.evaluation = make_evaluation(evaluate, model)
        self.points: list[Point] = []

    def look(self, opt: LAWA, model: nn.Module) -> None:
        """Evaluate the live weights and each window that is held, at the step that it is now.

        Raises:
            RuntimeError: averaged weights are in the model.
            ValueError: this step was looked at before, or the window does not fit the model.
        """
        opt.swaps.refuse_any("look()")
        step = opt.schedule.steps
        if any(point.step == step for point in self.points):
            raise ValueError(f"step {step} was looked at before")
        for window in self.windows:
            if window.is_live:
                state = copy.deepcopy(model.state_dict())
            elif window.span <= opt.num_snapshots:
                state = opt.averaged_state_dict(model, window.span, weights=window.weigh)
            else:
                continue
            try:
                point = Point(step, window, self.evaluation(state))
            except (Exception, SystemExit) as error:
                point = Point(step, window, error=one_line(error))
            self.points.append(point)

    def result(
        self,
        *,
        metric: str | None = None,
        higher_is_better: bool = False,
        target: float | None = None,
    ) -> Study:
        """Return what was found so far; see `Study` for the arguments."""
        return Study(
            self.points,
            self.windows,
            metric=metric,
            higher_is_better=higher_is_better,
            target=target,
        )
