"""Hold a training on its way: model, recipe, and the account of each method that reads it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from baselines.external import one_line_errors
from baselines.methods.averagers import Averager
from baselines.methods.method import EVALUATION, Method
from baselines.methods.part import MethodError
from baselines.methods.recipes import Recipe, Step
from baselines.training import distributed
from baselines.training.measurement import kind_of
from baselines.training.method_run import MethodRun, UndeclaredError, refuse_other_state
from baselines.training.results import TrainingResult
from baselines.training.watch import LOAD_DATA, Watch
from baselines.workloads.base import Batch, Workload
from timing import Account, Budget, Policy, StepTimer, tracebacks


def begin_averagers(
    methods: Sequence[Method], model: nn.Module, optimizer: Optimizer, workload: Workload
) -> tuple[list[Averager], Optimizer]:
    """Return the averager of each method, all following one training, and the optimizer to step.

    Those that hold the most begin first: what follows may read their windows.
    """
    made: dict[int, Averager] = {}
    for place in sorted(range(len(methods)), key=lambda place: -methods[place].averager.copies):
        made[place] = methods[place].begin_averager(model, optimizer, workload)
        optimizer = made[place].optimizer
    return [made[place] for place in range(len(methods))], optimizer


def try_out(method: Method, workload: Workload, learning_rate: float) -> None:
    """Run one step and one reading of a method, so that what it does wrongly is told at once.

    Raises:
        MethodError: it runs what it does not declare, or a file of it raises.
    """
    reading = method.max_evaluation_operations(workload)
    costs = dict.fromkeys({*method.step_operations(workload), *reading}, 1e-6)
    with one_line_errors(Path(method.files[-1]), MethodError):
        training = Training(workload, [method], 0, Budget(1.0), costs, learning_rate, "algoperf")
        try:
            training.next_step()
        except UndeclaredError as error:
            raise MethodError(tracebacks.in_one_line(error, training.place_of(error))) from error
        context, operations = training.runs[0].averager.evaluation_model()
        with context:
            pass
        latest = training.batches.latest
        assert latest is not None
        recipe, averager = training.recipe, training.runs[0].averager
        measured: dict[str, Callable[..., object]] = {
            **dict.fromkeys(averager.operations(), type(averager).operations),
            **dict.fromkeys(recipe.operations(lambda: latest), type(recipe).operations),
        }
    if more := {name for name, times in operations.items() if times > reading.get(name, 0)}:
        raise MethodError(
            f"an evaluation of {method.name} runs {', '.join(sorted(more))} more often than its "
            "evaluation_operations say: name the most that one can run"
        )
    # What recipes begin from has `train_step`, whether they run it or not.
    if more := measured.keys() - costs.keys() - {"train_step"}:
        name = min(more)
        place = tracebacks.place_of_function(measured[name]) or method.files[-1]
        raise MethodError(
            f"{place}: operations() of {method.name} measures {name}, which its parts do not "
            "declare: name it in step_operations or evaluation_operations"
        )


class Batches:
    """Draws the batches of this rank, and counts them.

    Attributes:
        drawn: how many.
        latest: the last one.
    """

    def __init__(self, workload: Workload, seed: int, timer: StepTimer, drawn: int = 0) -> None:
        self.drawn = drawn
        self._timer = timer
        self.latest: Batch | None = None
        # Those of the other ranks are passed over.
        world = distributed.world_size()
        start = drawn * world + distributed.rank()
        self._batches = itertools.islice(workload.batches(seed, start), None, None, world)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._timer.start(LOAD_DATA)
        self.latest = next(self._batches)
        self._timer.stop()
        self.drawn += 1
        return self.latest


class Training:
    """Holds a training on its way, and the methods that follow it: saved and loaded whole."""

    def __init__(
        self,
        workload: Workload,
        methods: Sequence[Method],
        seed: int,
        budget: Budget,
        costs: Mapping[str, float],
        learning_rate: float,
        policy: Policy,
        free: Sequence[str] = (),
    ) -> None:
        for method in methods:
            method.check(workload, distributed.world_size())
        torch.manual_seed(seed)
        self.workload = workload
        self.seed = seed
        self.costs = costs
        self.step, self.updates = 0, 0
        self.model = workload.make_model().train()
        self.recipe = methods[0].begin_recipe(self.model, workload, learning_rate)
        averagers, self.recipe.optimizer = begin_averagers(
            methods, self.model, self.recipe.optimizer, workload
        )
        self.runs = [
            MethodRun(
                method,
                averager,
                workload,
                Account(costs, policy, method.charged_shares(free)),
                budget,
            )
            for method, averager in zip(methods, averagers, strict=True)
        ]
        self.budget = budget
        factor, account = methods[0].schedule.factor, self.runs[0].account
        # Not of this object: in a circle, the model and DDP's threads would outlive the training.
        self.schedule = LambdaLR(self.recipe.optimizer, lambda _: factor(budget.spent(account)))
        self.recipe.network = distributed.ddp(self.model, in_part=methods[0].recipe.grows)
        # Each step of it runs the same, whatever it draws.
        self.is_plain = type(self.recipe) is Recipe
        self.watch = Watch(next(self.model.parameters()).device)
        self.batches = Batches(workload, seed, self.watch.steps)
        # What the recipe has run, on all ranks.
        self.ran = Account(costs, "mlperf")
        self._kinds: dict[tuple[str | None, ...], str] = {}
        # What tells it from others, beside what each part sees for itself.
        self.of = {
            "workload": workload.name,
            "seed": seed,
            "budget_seconds": budget.seconds,
            "learning_rate": learning_rate,
            "settings": {method.name: method.settings for method in methods},
        }

    @property
    def spent(self) -> float:
        """Return the fraction of the budget that is spent; of the first method, if several."""
        return self.budget.spent(self.runs[0].account)

    @property
    def active(self) -> list[MethodRun]:
        """Return those whose budget has not ended."""
        return [run for run in self.runs if not run.ended]

    def next_step(self) -> Step:
        """Run a step of the recipe, and charge it to the methods whose budget has not ended."""
        before = self.batches.drawn
        timer = self.watch.steps
        timer.start("step")
        step = self.recipe.step(self.batches, self.spent)
        said, drawn = step.operations.count("load_data"), self.batches.drawn - before
        if said != drawn or not step.operations:
            raise UndeclaredError(
                f"a step of {self.runs[0].name} drew {drawn} batches and names load_data {said} "
                f"times; it names {', '.join(step.operations) or 'nothing'}: name all that it ran",
                "recipe",
            )
        own = step.operations
        # A graph that a file's step has kept would be kept for all steps.
        step = step._replace(loss=step.loss.detach())
        if distributed.world_size() > 1:
            # At every step, so that what rank 0 keeps of it in a checkpoint is of all ranks.
            step = step._replace(
                loss=distributed.mean(step.loss),
                operations=distributed.of_all_ranks(step.operations, alike=self.is_plain),
            )
        self.step += 1
        self.updates += step.updated
        added = [run.step(step) for run in self.active]
        timer.stop(self._kind(own, *added))
        for operation in step.operations:
            self.ran.charge(operation)
        # Before the first update torch takes it for a mistake.
        if self.updates:
            self.schedule.step()
        return step

    def place_of(self, error: BaseException) -> str:
        """Return where the step of a user's own part is that has run what it does not declare."""
        if not isinstance(error, UndeclaredError):
            return ""
        if error.part == "recipe":
            return tracebacks.place_of_function(type(self.recipe).step)
        return tracebacks.place_of_function(type(self.runs[0].averager).after_step)

    def _kind(self, operations: tuple[str, ...], *added: str | None) -> str:
        """Return the name of a step in which these ran on this rank; batches have their own."""
        key = (*operations, *added)
        if key not in self._kinds:
            ran = [name for name in key if name not in (None, LOAD_DATA)]
            self._kinds[key] = kind_of(ran)
            self.watch.name(self._kinds[key], Counter(ran))
        return self._kinds[key]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on."""
        return {
            "of": self.of,
            "step": self.step,
            "updates": self.updates,
            "drawn": self.batches.drawn,
            "ran": self.ran.state_dict(),
            "model": self.model.state_dict(),
            "recipe": self.recipe.state_dict(),
            "optimizer": self.recipe.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "runs": {run.name: run.state_dict() for run in self.runs},
            "watch": self.watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what raises may have been loaded in part.

        Raises:
            ValueError: it is of another training, reference profile, policy, model or method.
        """
        refuse_other_state(state, self.state_dict(), "training")
        if state["of"] != self.of:
            raise ValueError(f"it is of another training: of {state['of']}, and this of {self.of}")
        for run in self.runs:
            run.load_state_dict(state["runs"][run.name])
        self.model.load_state_dict(state["model"])
        self.recipe.load_state_dict(state["recipe"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.updates = state["step"], state["updates"]
        self.batches = Batches(self.workload, self.seed, self.watch.steps, state["drawn"])
        self.ran.load_state_dict(state["ran"])
        self.watch.load_state_dict(state["watch"])

    def result(self, error: str | None) -> TrainingResult:
        """Return its result."""
        # The watch stood still for evaluations alone, so all other operations are in both times.
        timed = Account(self.costs, "mlperf")
        for operation, times in self.ran.counts.items():
            timed.charge(operation, times)
        for run in self.runs:
            # What the recipe ran was charged to each, and ran once.
            charged = Counter(run.account.counts)
            for name in (*self.ran.counts, *EVALUATION):
                charged.pop(name, None)
            for operation, times in charged.items():
                timed.charge(operation, times)
        return TrainingResult(
            runs=tuple(run.result(self.seed) for run in self.runs),
            rst_seconds=timed.rst_seconds,
            measured_seconds=self.watch.wall_seconds,
            other_cores=self.watch.other_cores,
            error=error,
            # After an error a GPU may not answer.
            measurement=None if error else self.watch.measurement(timed.counts),
        )
