"""LAWA's k and interval, all of them from one training run a seed."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from baselines.comparison import Comparison, Plan
from baselines.methods import METHODS, Method
from baselines.report import estimate
from baselines.training import EVALUATION, STEP, check_budget, train
from lawa_opt import LAWA
from timing import Account
from timing.schedules import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn
    from torch.optim import Optimizer

    from baselines.averagers import Averager
    from baselines.methods import Settings
    from baselines.training import Point
    from baselines.workloads.workload import Workload
    from lawa_opt.interval import Every
    from timing import Profile

LIVE = "constant"


@dataclass(frozen=True)
class Cell:
    """A window to try: k snapshots, one every so many steps."""

    k: int
    every: Every

    @property
    def name(self) -> str:
        """As a method's name."""
        return f"lawa-k{self.k}-every-{self.every}"


class SharedWindow:
    """A window that several cells read; shorter ones are its latest snapshots."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        # Beside the optimizer and not around it: there are several windows, and one training.
        self.lawa = LAWA(optimizer, k, every, buffers=model.buffers())
        self._collected = False

    def collected_after(self, step: int) -> bool:
        """Whether a snapshot was collected after this step, the latest; whoever asks first does."""
        if step > self.lawa.interval.step:
            self._collected = self.lawa.interval.advance()
            if self._collected:
                self.lawa.collect()
        return self._collected


class Slice:
    """An averager: the latest k snapshots of a shared window."""

    step_operations: Mapping[str, int] = {"collect": 1}
    read_operations: Mapping[str, int] = {"average": 1}

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, window: SharedWindow, k: int
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.window = window
        self.k = k
        self._steps = 0

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """The shared window has collected in this step, or not."""
        self._steps += 1
        return "collect" if self.window.collected_after(self._steps) else None

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The model under the mean of k snapshots, or of fewer at first; live before any."""
        return self._averaged(), self.read_operations if self.window.lawa.held else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        latest = min(self.k, self.window.lawa.held) or None
        with self.window.lawa.averaged(latest, if_empty="live"):
            yield self.model


def ablate(
    plan: Plan,
    profile: Profile,
    cells: Sequence[Cell],
    on_point: Callable[[str, int, Point], None] = lambda *_: None,
) -> Comparison:
    """Train once a seed at the constant rate, and read every cell's average beside the live one.

    An average changes nothing in a training, so a run is the one it would have been alone, with an
    account of its own. A reading is charged as one of the longest window, for which the profile
    was measured: a little too much for the shorter ones.

    Args:
        plan: its methods are not looked at; `settings.k` must be the longest k of the cells.
        profile: of the plan's signature.
        cells: windows to try.
        on_point: told of each evaluation: name, seed and point.

    Returns:
        A run for each cell and seed, by the cell's name, and one of the live weights, "constant".

    Raises:
        ValueError: no cell, one of them twice, the longest k is not that of the plan, or the budget
            is below one step.
        ProfileError: the profile is of another workload or k, or lacks an operation.
    """
    check(plan, profile, cells)
    names = (LIVE, *(cell.name for cell in cells))
    trajectories = tuple(
        train(
            plan.workload,
            {LIVE: METHODS[LIVE], **_methods(cells)},
            seed,
            plan.budget,
            profile.seconds,
            plan.settings,
            plan.evaluations,
            lambda name, point, seed=seed: on_point(name, seed, point),  # type: ignore[misc]
            plan.policy,
        )
        for seed in plan.seeds
    )
    return Comparison(replace(plan, methods=names), profile, trajectories)


def check(plan: Plan, profile: Profile, cells: Sequence[Cell]) -> None:
    """Refuse what `ablate` cannot do; raises as it does."""
    if not cells or len(set(cells)) < len(cells):
        raise ValueError(f"an ablation wants cells, each once: {list(cells)}")
    longest = max(cell.k for cell in cells)
    if longest != plan.settings.k:
        raise ValueError(f"the longest k is {longest}, and the plan is of k={plan.settings.k}")
    needed = {*STEP, *EVALUATION, *Slice.step_operations, *Slice.read_operations}
    profile.require(plan.signature, needed)
    model = plan.workload.make_model()
    optimizer = plan.workload.make_optimizer(model, plan.settings.learning_rate)
    window = SharedWindow(model, optimizer, longest, "manual")
    account = Account(profile.seconds, plan.policy)
    check_budget(Slice(model, optimizer, window, longest), account, plan.budget)


def _methods(cells: Sequence[Cell]) -> dict[str, Method]:
    """A method for each cell, for one training; those of one interval in steps share a window.

    "auto" spreads its k snapshots over the latest tenth, so each k has an interval of its own.
    """
    windows: dict[Cell, SharedWindow] = {}
    longest = max(cell.k for cell in cells)

    def method(cell: Cell) -> Method:
        def averager(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
            window = cell if cell.every == "auto" else Cell(longest, cell.every)
            if window not in windows:
                windows[window] = SharedWindow(model, optimizer, window.k, window.every)
            return Slice(model, optimizer, windows[window], cell.k)

        return Method(cell.name, constant, averager)

    return {cell.name: method(cell) for cell in cells}


def table(comparison: Comparison, cells: Sequence[Cell], share: float = 1.0) -> list[list[str]]:
    """The metric of each cell at this share of the budget, intervals by column k and row every.

    The first row heads; the second has the live weights.
    """
    ks = sorted({cell.k for cell in cells})
    rows: dict[Every, list[str]] = {}
    for cell in cells:
        rows.setdefault(cell.every, ["" for _ in ks])
        rows[cell.every][ks.index(cell.k)] = _metric(comparison, cell.name, share)
    live = [_metric(comparison, LIVE, share), *("" for _ in ks[1:])]
    return [
        ["every", *(f"k={k}" for k in ks)],
        ["live", *live],
        *([str(every), *row] for every, row in rows.items()),
    ]


def _metric(comparison: Comparison, name: str, share: float) -> str:
    at = comparison.plan.budget.seconds * share
    values = [run.value_at(at) for run in comparison.of(name)]
    return str(estimate(values)) if all(map(math.isfinite, values)) else "failed"
