"""Read the mean of snapshots from the last part of a training (SWA), with and without cycles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.averagers.base import (
    CALIBRATE_READING_EVERY,
    Averager,
    AveragerPart,
    check_keys,
)
from baselines.methods.averagers.batchnorm import update_bn
from baselines.methods.averagers.by_count import AverageByCount
from baselines.methods.part import Range, check_share
from baselines.methods.schedules import SchedulePart
from baselines.workloads.base import Workload
from timing import Operation

SWA_EVERY = 10

# Cyclic SWA: six cycles of 4% of the budget, in each of which the rate falls to a hundredth. The
# last ends at 99%, since a run stops before its budget is used up to the last step.
CYCLES_START, CYCLE, CYCLES, MIN_FACTOR = 0.75, 0.04, 6, 0.01


def _equal_weight(taken: int) -> float:
    return 1 / (taken + 1)


class Swa(Averager):
    """Averages snapshots of the last part; an evaluation recomputes BatchNorm's statistics.

    Izmailov et al. (arXiv 1803.05407) at a constant rate. Before that part there is no average,
    and the live weights are read.

    Args:
        model: that is trained.
        optimizer: that trains it.
        bn_batches: inputs that the statistics are recomputed from, if there are any.
        start: the fraction of the budget from which every tenth step is taken in.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        bn_batches: Sequence[Tensor],
        start: float,
    ) -> None:
        super().__init__(model, optimizer)
        self.start = start
        self.average = AverageByCount(model, _equal_weight, exponential=False)
        self.models = (self.average.module,)
        self.bn_batches = bn_batches
        # Steps since the start, or, if cyclic, cycles that have ended.
        self._passed = 0

    def _is_due(self, spent: float) -> bool:
        if spent < self.start:
            return False
        self._passed += 1
        return self._passed % SWA_EVERY == 1

    def after_step(self, spent: float) -> str | None:
        """Take the weights in if they are due."""
        if not self._is_due(spent):
            return None
        self.average.update_parameters(self.model)
        return "swa_update"

    def begin_anew(self, names: Sequence[str]) -> None:
        """Forget the averages of these."""
        self.average.begin_anew(names)

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the averaged model, its statistics up to date."""
        if int(self.average.n_averaged) == 0:
            return nullcontext(self.model), {}
        self.average.take_live(self.model)
        return self._with_statistics(), {"statistics": 1} if self.bn_batches else {}

    @contextmanager
    def _with_statistics(self) -> Iterator[nn.Module]:
        if self.bn_batches:
            update_bn(self.average.module, self.bn_batches)
        yield self.average.module

    def operations(self) -> Mapping[str, Operation]:
        """Return an update, and the statistics where there are any."""

        def recompute() -> None:
            update_bn(self.average.module, self.bn_batches)

        update = Operation(lambda: self.average.update_parameters(self.model), every=SWA_EVERY)
        if not self.bn_batches:
            return {"swa_update": update}
        return {
            "swa_update": update,
            "statistics": Operation(recompute, every=CALIBRATE_READING_EVERY),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and how far the last part is."""
        return {**self.average.saved(), "passed": self._passed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        self.average.load_saved(state)
        self._passed = state["passed"]


class CyclicSwa(Swa):
    """SWA that takes in the weights at the end of each cycle of `cyclic_linear`, and no others."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, bn_batches: Sequence[Tensor]
    ) -> None:
        super().__init__(model, optimizer, bn_batches, CYCLES_START)

    def _is_due(self, spent: float) -> bool:
        before, self._passed = self._passed, min(int(cycles_passed(spent)), CYCLES)
        return self._passed > before


def cycles_passed(fraction: float) -> float:
    """Return the cycles of cyclic SWA that are over at this fraction of the budget."""
    return max(0.0, (fraction - CYCLES_START) / CYCLE)


def cyclic_linear(fraction: float) -> float:
    """Return the factor of cyclic SWA's rate: constant, then several linear falls from the peak.

    Izmailov et al. (arXiv 1803.05407), section 3.2: a rate that jumps back up at once, and falls to
    a small one at the end of a cycle, where the weights are taken in. After the last it stays low.
    """
    passed = cycles_passed(fraction)
    into = 1.0 if passed >= CYCLES else passed % 1
    return 1 - (1 - MIN_FACTOR) * into


@dataclass(frozen=True)
class CyclicLinear(SchedulePart):
    """Keep the peak rate, then fall from it several times, for cyclic SWA."""

    name = "cyclic"
    title = "cyclic rate"
    averaged = "a cyclic rate"

    def factor(self, spent: float) -> float:
        """Return the factor in the cycle."""
        return cyclic_linear(spent)


@dataclass(frozen=True)
class _SwaPart(AveragerPart):
    step_operations = {"swa_update": 1}

    @property
    def copies(self) -> int:
        """Return one: the average."""
        return 1

    def max_evaluation_operations(self, workload: Workload) -> Mapping[str, int]:
        """Return the statistics, where a workload has batches for them."""
        return {"statistics": 1} if workload.bn_batches else {}


@dataclass(frozen=True)
class SwaPart(_SwaPart):
    """Average snapshots of the last part of a training.

    Attributes:
        start: the fraction of the budget from which it averages; the default is the last quarter,
            as in the experiments of Izmailov et al. (arXiv 1803.05407).
    """

    name = "swa"
    title = "SWA"
    space = {"start": Range(0.3, 0.95)}

    start: float = 0.75

    def __post_init__(self) -> None:
        check_share(start=self.start)

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> Swa:
        """Return what follows a training."""
        return Swa(model, optimizer, workload.bn_batches, self.start)


@dataclass(frozen=True)
class CyclicSwaPart(_SwaPart):
    """Average the ends of the cycles of a cyclic rate, which comes with it."""

    name = "swa-cyclic"
    title = "SWA"
    brings = (CyclicLinear(),)

    def begin(self, model: nn.Module, optimizer: Optimizer, workload: Workload) -> CyclicSwa:
        """Return what follows a training."""
        return CyclicSwa(model, optimizer, workload.bn_batches)
