"""Say what a method is: a recipe, a schedule and an averager, under a name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from baselines.external import one_line_errors
from baselines.methods.averagers.base import Averager, AveragerPart, Live
from baselines.methods.part import MethodError, Part, Range
from baselines.methods.recipes.base import Recipe, RecipePart
from baselines.methods.schedules import Constant, SchedulePart
from baselines.workloads.base import Workload

EVALUATION = {"evaluate": 1}


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        name: the sum of its parts, or the short name of one.
        title: in tables and plots.
        recipe: how weights are updated.
        schedule: of the learning rate, over the budget.
        averager: what is evaluated.
        share: of the budget that a run gets; the schedule and its end are of that part.
        learning_rate: the peak rate; None for the plan's.
        files: the user's own that its parts are from.
    """

    name: str
    title: str
    recipe: RecipePart = field(default_factory=RecipePart)
    schedule: SchedulePart = field(default_factory=Constant)
    averager: AveragerPart = field(default_factory=Live)
    share: float = 1.0
    learning_rate: float | None = None
    files: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Part]:
        """Return its parts by kind."""
        return {"recipe": self.recipe, "schedule": self.schedule, "averager": self.averager}

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of all parts, as "lawa.k"."""
        return _by_part({part: part.settings for part in self.parts.values()})

    @property
    def changed(self) -> dict[str, Any]:
        """Return the settings that are not the defaults."""
        return _by_part({part: part.changed for part in self.parts.values()})

    @property
    def space(self) -> dict[str, Range]:
        """Return what tuning may try of them, by the same names."""
        return _by_part({part: part.space for part in self.parts.values()})

    def with_settings(self, values: Mapping[str, object]) -> Method:
        """Return the method with other settings, by names such as "lawa.k".

        Raises:
            MethodError: it has no such setting, or the setting does not take the value.
        """
        if unknown := [name for name in values if name not in self.settings]:
            raise MethodError(
                f"{unknown[0]} is no setting of {self.name}: it has "
                f"{', '.join(self.settings) or 'none'}"
            )
        changed: dict[str, Any] = {}
        for kind, part in self.parts.items():
            own = {
                setting: values[name]
                for setting in part.settings
                if (name := f"{part.name}.{setting}") in values
            }
            changed[kind] = part.with_settings(own) if own else part
        return replace(self, **changed)

    @property
    def shares_training(self) -> bool:
        """Say whether it can follow a training that others follow too.

        Nothing in it may depend on what it has spent; and what is of a file of the user's own may
        change the training that it follows.
        """
        depends = self.recipe.depends_on_spent or self.schedule.depends_on_spent
        return not depends and self.share == 1 and not self.files

    def check(self, workload: Workload, ranks: int = 1) -> None:
        """Refuse a workload that lacks what the recipe needs, or ranks that it cannot train over.

        Raises:
            MethodError: it is so.
        """
        if lacking := [name for name in self.recipe.needs if not getattr(workload, name)]:
            raise MethodError(
                f"{self.recipe.name} needs {' and '.join(lacking)} of a workload, which "
                f"{workload.name} does not offer: choose another, or add it to yours"
            )
        if ranks > 1 and self.recipe.one_process:
            raise MethodError(
                f"{self.recipe.name} cannot be trained over {ranks} ranks: "
                f"{self.recipe.one_process}; start it without torchrun"
            )

    def step_kinds(self, workload: Workload) -> list[dict[str, int]]:
        """Return the most operations that a step can run, for each kind of step."""
        own = self.averager.step_operations
        return [{**kind, **own} for kind in self.recipe.step_kinds(workload)]

    def charged_shares(self, free: Iterable[str]) -> dict[str, float]:
        """Return the shares of costs that it is charged, as of `Account`, where these are free."""
        return {**self.recipe.charged_shares, **dict.fromkeys(free, 0.0)}

    def step_operations(self, workload: Workload) -> set[str]:
        """Return the operations that steps can run."""
        return {*itertools.chain.from_iterable(self.step_kinds(workload))}

    def max_evaluation_operations(self, workload: Workload) -> dict[str, int]:
        """Return the most operations that an evaluation can run."""
        return {**EVALUATION, **self.averager.max_evaluation_operations(workload)}

    def begin_recipe(self, model: nn.Module, workload: Workload, learning_rate: float) -> Recipe:
        """Return its recipe for this model.

        Raises:
            MethodError: it cannot be made; the workload lacks what it needs; or what it calls a
                `train_step` is that of another optimizer, and would be charged what the workload's
                own costs.
        """
        self.check(workload)
        with self._told():
            recipe = self.recipe.begin(model, workload, learning_rate)
        if type(recipe) is not Recipe and "train_step" in self.step_operations(workload):
            plain, own = workload.make_optimizer(model, learning_rate), recipe.optimizer
            if type(plain) is not type(own):
                raise MethodError(
                    f"{self.recipe.name} trains with {type(own).__name__} and names its step "
                    f"train_step, which is that of {type(plain).__name__}, the workload's: name "
                    "it otherwise, so that its own cost is measured"
                )
        return recipe

    def begin_averager(
        self, model: nn.Module, optimizer: Optimizer, workload: Workload
    ) -> Averager:
        """Return its averager for this training.

        Raises:
            MethodError: it cannot be made; or the model grows, and it would mix its averages of
                what was no part of the model yet with those of what is.
        """
        with self._told():
            averager = self.averager.begin(model, optimizer, workload)
        own = type(averager)
        if self.recipe.grows and own is not Averager and own.begin_anew is Averager.begin_anew:
            raise MethodError(
                f"the model of {self.recipe.name} grows, and {own.__name__} does not say what of "
                "its average begins anew then: define begin_anew(names) in it"
            )
        return averager

    def _told(self) -> AbstractContextManager[None]:
        """Tell what a file of the user's own raises in one line, with its place."""
        return one_line_errors(Path(self.files[-1]), MethodError) if self.files else nullcontext()


def _by_part(values: Mapping[Part, Mapping[str, Any]]) -> dict[str, Any]:
    # What was read from a folder has the names of its parts in those of their settings.
    return {
        f"{part.name}.{setting}" if part.name else setting: value
        for part, own in values.items()
        for setting, value in own.items()
    }
