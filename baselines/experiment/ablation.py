"""LAWA's k and interval, all of them from one training run a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from baselines.analysis.intervals import Estimate, estimate
from baselines.analysis.report import conditions
from baselines.experiment.comparison import Comparison, Listener, Plan
from baselines.methods.averagers import Averager, Live, check_keys
from baselines.methods.method import Method, Settings, find
from baselines.training.loop import check_budget, dearest_reading, dearest_step, train
from baselines.training.results import Point
from baselines.workloads.base import Workload
from lawa_opt import LAWA
from lawa_opt.schedule import Every
from timing import Account, Profile
from timing.rst.schedules import constant

LIVE = "constant"
# Of the budget, at which the windows are compared.
SHARES = (0.5, 1.0)


@dataclass(frozen=True)
class Cell:
    """A window to try: k snapshots, one every so many steps."""

    k: int
    every: Every

    @property
    def name(self) -> str:
        """As a method's name."""
        return f"k={self.k} every={self.every}"


class SharedWindow:
    """A window that several cells read; shorter ones are its latest snapshots."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        # Beside the optimizer and not around it: there are several windows, and one training.
        self.lawa = LAWA(optimizer, k, every, buffers=model)
        self._collected = False

    def collected_after(self, step: int) -> bool:
        """Whether a snapshot was collected after this step, the latest; whoever asks first does."""
        if step > self.lawa.schedule.steps:
            self._collected = self.lawa.schedule.step()
            if self._collected:
                self.lawa.collect()
        return self._collected


class Slice(Live):
    """An averager: the latest k snapshots of a shared window."""

    step_operations: Mapping[str, int] = {"collect": 1}
    read_operations: Mapping[str, int] = {"average": 1}

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, window: SharedWindow, k: int
    ) -> None:
        super().__init__(model, optimizer)
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

    def state_dict(self) -> dict[str, Any]:
        """Its place, and the window: the same tensors for all that share it."""
        return {"steps": self._steps, "window": self.window.lawa.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        self.window.lawa.load_state_dict(state["window"])
        self._steps = state["steps"]


def plan_of(plan: Plan, cells: Sequence[Cell]) -> Plan:
    """The plan with its cells as methods, each with its own k and interval, and the live weights.

    The test part is not read: an ablation chooses.
    """
    own = {cell.name: replace(plan.settings, k=cell.k, every=cell.every) for cell in cells}
    return replace(plan, methods=(LIVE, *own), tuned=own, read_test=False)


def ablate(
    plan: Plan, profile: Profile, cells: Sequence[Cell], listener: Listener | None = None
) -> Comparison:
    """Train once a seed at the constant rate, and read every cell's average beside the live one.

    An average changes nothing in a training, so a run is the one it would have been alone, with an
    account of its own. A reading is charged as one of the longest window, for which the profile
    was measured: a little too much for the shorter ones.

    Args:
        plan: its methods are not looked at; `settings.k` must be the longest k of the cells.
        profile: of the plan's signature.
        cells: windows to try.
        listener: told of all but the models.

    Returns:
        A run for each cell and seed, by the cell's name, and one of the live weights, "constant".

    Raises:
        ValueError: no cell, one of them twice, the longest k is not that of the plan, or the budget
            is below one step.
        ProfileError: the profile is of another workload or k, or lacks an operation.
    """
    check(plan, profile, cells)
    whole = plan_of(plan, cells)
    trajectories = []
    for seed in plan.seeds:
        if listener:
            for name in whole.methods:
                listener.run_started(name, seed)
        trajectory = train(
            plan.workload,
            methods_of(cells),
            seed,
            plan.budget,
            profile.seconds,
            plan.settings,
            plan.evaluations,
            partial(_tell, listener, seed),
            plan.policy,
            read_test=False,
        )
        if listener:
            listener.trajectory_ended(trajectory)
        trajectories.append(trajectory)
    # What each cell has of its own is in its name, and need not be told of as tuned.
    return Comparison(replace(whole, tuned={}), profile, tuple(trajectories))


def _tell(listener: Listener | None, seed: int, name: str, point: Point) -> None:
    if listener:
        listener.point(name, seed, point)


def check(plan: Plan, profile: Profile, cells: Sequence[Cell]) -> None:
    """Refuse what `ablate` cannot do; raises as it does."""
    if not cells or len(set(cells)) < len(cells):
        raise ValueError(f"an ablation wants cells, each once: {list(cells)}")
    longest = max(cell.k for cell in cells)
    if longest != plan.settings.k:
        raise ValueError(f"the longest k is {longest}, and the plan is of k={plan.settings.k}")
    model = plan.workload.make_model()
    optimizer = plan.workload.make_optimizer(model, plan.settings.learning_rate)
    window = SharedWindow(model, optimizer, longest, "manual")
    averager = Slice(model, optimizer, window, longest)
    profile.require(plan.signature, {*dearest_step(averager), *dearest_reading(averager)})
    check_budget(averager, Account(profile.seconds, plan.policy), plan.budget)


def methods_of(cells: Sequence[Cell]) -> dict[str, Method]:
    """A method for the live weights and each cell, for one training.

    Cells of one interval in steps share a window. "auto" spreads its k snapshots over the latest
    tenth, so each k has an interval of its own.
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

    return {LIVE: find(LIVE), **{cell.name: method(cell) for cell in cells}}


def means(
    comparison: Comparison, cells: Sequence[Cell], share: float = 1.0
) -> dict[Cell, Estimate | None]:
    """The metric of each cell at this share of the budget, over seeds; None if a run failed."""
    return {cell: _metric(comparison, cell.name, share) for cell in cells}


def _metric(comparison: Comparison, name: str, share: float) -> Estimate | None:
    at = comparison.plan.budget.seconds * share
    values = [run.value_at(at) for run in comparison.of(name)]
    return estimate(values) if all(map(math.isfinite, values)) else None


def table(comparison: Comparison, cells: Sequence[Cell], share: float = 1.0) -> list[list[str]]:
    """The metric of each cell at this share of the budget, intervals by column k and row every.

    The first row heads; the second has the live weights.
    """
    ks = sorted({cell.k for cell in cells})
    rows: dict[Every, list[str]] = {}
    for cell, mean in means(comparison, cells, share).items():
        rows.setdefault(cell.every, ["" for _ in ks])
        rows[cell.every][ks.index(cell.k)] = str(mean or "failed")
    live = [str(_metric(comparison, LIVE, share) or "failed"), *("" for _ in ks[1:])]
    return [
        ["every", *(f"k={k}" for k in ks)],
        ["live", *live],
        *([str(every), *row] for every, row in rows.items()),
    ]


def title(comparison: Comparison, share: float) -> str:
    """Of a table at this share of the budget."""
    plan = comparison.plan
    seconds = plan.budget.seconds * share
    return f"{plan.workload.name}: {plan.workload.metric} after {seconds:g} s of RST"


def verdict(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """Which window ends best, and how far from the live weights."""
    ends = {cell: mean for cell, mean in means(comparison, cells).items() if mean}
    live = _metric(comparison, LIVE, 1.0)
    if not ends or not live:
        return "A training failed, so no window is best."
    best = min(ends, key=lambda cell: ends[cell].mean)
    return (
        f"Best at the end: {best.name} with {ends[best]}, where the live weights have {live}. "
        f"Chosen among {len(ends)} windows by the validation part, so it flatters itself."
    )


def markdown(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """Both tables and the verdict, for the note on the parent run."""
    lines = [f"- {verdict(comparison, cells)}"]
    for share in SHARES:
        head, *body = [" | ".join(row) for row in table(comparison, cells, share)]
        rule = "|" + "---|" * (head.count(" | ") + 1)
        lines += ["", f"## {title(comparison, share)}", "", f"| {head} |", rule]
        lines += [f"| {row} |" for row in body]
    return "\n".join([*lines, "", f"_Constant rate. {conditions(comparison)}_"])


def columns(comparison: Comparison, cells: Sequence[Cell]) -> dict[str, list[str | float]]:
    """The tables by column, unrounded, a line a cell and seed."""
    half, end = (comparison.plan.budget.seconds * share for share in SHARES)
    lines = [
        (cell.k, str(cell.every), run.seed, *map(_or_failed, map(run.value_at, (half, end))))
        for cell in cells
        for run in comparison.of(cell.name)
    ]
    names = ("k", "every", "seed", "metric_at_half", "final_metric")
    return {
        name: list(values) for name, values in zip(names, zip(*lines, strict=True), strict=True)
    }


def _or_failed(value: float) -> str | float:
    return value if math.isfinite(value) else "failed"
