"""Read the mean of snapshots from the last part of a training (SWA), with and without cycles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from baselines.methods.averagers.base import CALIBRATE_READING_EVERY, NoAveraging, check_keys
from baselines.methods.averagers.batchnorm import has_batchnorm, update_bn
from baselines.methods.averagers.tensors import load_tensors, tensors_of
from timing import Operation

SWA_EVERY = 10

# Cyclic SWA: six cycles of 4% of the budget, in each of which the rate falls to a hundredth. The
# last ends at 99%, since a run stops before its budget is used up to the last step.
CYCLES_START, CYCLE, CYCLES, MIN_FACTOR = 0.75, 0.04, 6, 0.01


class Swa(NoAveraging):
    """Averages snapshots of the last part; an evaluation recomputes BatchNorm's statistics.

    Izmailov et al. (arXiv 1803.05407) at a constant rate. Before that part there is no average,
    and the live weights are read.

    Args:
        model: that is trained.
        optimizer: that trains it.
        bn_batches: inputs that the statistics are recomputed from, if there are any.
        start: the fraction of the budget from which every tenth step is taken in.
    """

    step_operations: Mapping[str, int] = {"swa_update": 1}

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        bn_batches: Sequence[Tensor],
        start: float,
    ) -> None:
        super().__init__(model, optimizer)
        self.start = start
        self.average = AveragedModel(model)
        self.bn_batches = bn_batches if has_batchnorm(model) else ()
        self.evaluation_operations = {"statistics": 1} if self.bn_batches else {}
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

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the averaged model, its statistics up to date."""
        if int(self.average.n_averaged) == 0:
            return nullcontext(self.model), {}
        return self._with_statistics(), self.evaluation_operations

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
        return {"average": tensors_of(self.average), "passed": self._passed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        load_tensors(self.average, state["average"])
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
