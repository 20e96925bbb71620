"""LAWA's k and interval, all of them from one training run a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from baselines.experiment.comparison import Comparison, Plan
from baselines.methods.averagers import Averager, NoAveraging, check_keys
from baselines.methods.method import Method, find
from baselines.methods.settings import Settings
from baselines.training.events import Evaluated, OnEvent, Started, ending_of, ignore
from baselines.training.loop import train
from baselines.training.method_run import (
    check_budget,
    max_evaluation_operations,
    max_step_operations,
)
from baselines.training.results import Point
from baselines.workloads.base import Workload
from lawa_opt import LAWA
from lawa_opt.schedule import Every
from timing import Account, Profile
from timing.rst.schedules import constant

LIVE = "constant"


@dataclass(frozen=True)
class WindowConfig:
    """A window to try: k snapshots, one every so many steps."""

    k: int
    every: Every

    @property
    def name(self) -> str:
        """Return it as a method's name."""
        return f"k={self.k} every={self.every}"


class SharedWindow:
    """A window that several configurations read; shorter ones are its latest snapshots."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        # Beside the optimizer and not around it: there are several windows, and one training.
        self.lawa = LAWA(optimizer, k, every, buffers=model)
        self._collected = False

    def collected_after(self, step: int) -> bool:
        """Say whether a snapshot was collected after this step; whoever asks first collects."""
        if step > self.lawa.schedule.steps:
            self._collected = self.lawa.schedule.step()
            if self._collected:
                self.lawa.collect()
        return self._collected


class SubWindow(NoAveraging):
    """An averager: the latest k snapshots of a shared window."""

    step_operations: Mapping[str, int] = {"collect": 1}
    evaluation_operations: Mapping[str, int] = {"average": 1}

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, window: SharedWindow, k: int
    ) -> None:
        super().__init__(model, optimizer)
        self.window = window
        self.k = k
        self._steps = 0

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Return what the shared window has collected in this step, if it has."""
        self._steps += 1
        return "collect" if self.window.collected_after(self._steps) else None

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model under the mean of k snapshots, or of fewer at first; live before any."""
        filled = self.window.lawa.num_snapshots > 0
        return self._averaged(), self.evaluation_operations if filled else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        latest = min(self.k, self.window.lawa.num_snapshots) or None
        with self.window.lawa.averaged(latest, if_empty="live"):
            yield self.model

    def state_dict(self) -> dict[str, Any]:
        """Return its place, and the window: the same tensors for all that share it."""
        return {"steps": self._steps, "window": self.window.lawa.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        self.window.lawa.load_state_dict(state["window"])
        self._steps = state["steps"]


def plan_of(plan: Plan, configs: Sequence[WindowConfig]) -> Plan:
    """Return the plan with windows as methods, each with its own k and interval.

    The live weights are one more. The test part is not read: an ablation chooses.
    """
    own = {
        config.name: replace(plan.settings, k=config.k, every=config.every) for config in configs
    }
    return replace(plan, methods=(LIVE, *own), tuned=own, read_test=False)


def ablate(
    plan: Plan,
    profile: Profile,
    configs: Sequence[WindowConfig],
    on_event: OnEvent = ignore,
) -> Comparison:
    """Train once a seed at the constant rate, and read every window's average beside the live one.

    An average changes nothing in a training, so a run is the one it would have been alone, with an
    account of its own. A reading is charged as one of the longest window, for which the profile
    was measured: a little too much for the shorter ones.

    Args:
        plan: its methods are not looked at; `settings.k` must be the longest k of the windows.
        profile: of the plan's signature.
        configs: windows to try.
        on_event: called with what its trainings would log.

    Returns:
        A run for each window and seed, by the window's name, and one of the live weights,
            "constant".

    Raises:
        ValueError: no window, one of them twice, the longest k is not that of the plan, or the
            budget is below one step.
        ProfileError: the profile is of another workload or k, or lacks an operation.
    """
    check(plan, profile, configs)
    whole = plan_of(plan, configs)
    trainings = []
    for seed in plan.seeds:
        on_event(Started(seed=seed, shares=dict.fromkeys(whole.methods, 1.0)))
        result = train(
            plan.workload,
            methods_of(configs),
            seed,
            plan.budget,
            profile.seconds,
            plan.settings,
            plan.evaluations,
            partial(_tell, on_event, seed),
            plan.policy,
            read_test=False,
        )
        on_event(ending_of(result, seed))
        trainings.append(result)
    # What each window has of its own is in its name, and need not be told of as tuned.
    return Comparison(replace(whole, tuned={}), profile, tuple(trainings))


def _tell(on_event: OnEvent, seed: int, name: str, point: Point) -> None:
    on_event(Evaluated(seed=seed, method=name, point=point))


def check(plan: Plan, profile: Profile, configs: Sequence[WindowConfig]) -> None:
    """Refuse what `ablate` cannot do; raises as it does."""
    if not configs or len(set(configs)) < len(configs):
        raise ValueError(f"an ablation wants windows, each once: {list(configs)}")
    longest = max(config.k for config in configs)
    if longest != plan.settings.k:
        raise ValueError(f"the longest k is {longest}, and the plan is of k={plan.settings.k}")
    model = plan.workload.make_model()
    optimizer = plan.workload.make_optimizer(model, plan.settings.learning_rate)
    window = SharedWindow(model, optimizer, longest, "manual")
    averager = SubWindow(model, optimizer, window, longest)
    profile.require(
        plan.signature, {*max_step_operations(averager), *max_evaluation_operations(averager)}
    )
    check_budget(averager, Account(profile.seconds, plan.policy), plan.budget)


def methods_of(configs: Sequence[WindowConfig]) -> dict[str, Method]:
    """Return a method for the live weights and one a window, for one training.

    Those of one interval in steps share a window. "auto" spreads its k snapshots over the latest
    tenth, so each k has an interval of its own.
    """
    windows: dict[WindowConfig, SharedWindow] = {}
    longest = max(config.k for config in configs)

    def method(config: WindowConfig) -> Method:
        def averager(model: nn.Module, optimizer: Optimizer, _: Workload, __: Settings) -> Averager:
            window = config if config.every == "auto" else WindowConfig(longest, config.every)
            if window not in windows:
                windows[window] = SharedWindow(model, optimizer, window.k, window.every)
            return SubWindow(model, optimizer, windows[window], config.k)

        return Method(config.name, constant, averager)

    return {LIVE: find(LIVE), **{config.name: method(config) for config in configs}}
