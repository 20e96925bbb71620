"""What reads an average off a training run: each says which operations it adds and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, update_bn

from lawa_opt import LAWA
from lawa_opt.schedule import Every
from timing import Operation

SWA_EVERY = 10

# Cyclic SWA: six cycles of 4% of the budget, in each of which the rate falls to a hundredth. The
# last ends at 99%, since a run stops before its budget is used up to the last step.
CYCLES_START, CYCLE, CYCLES, LOWEST = 0.75, 0.04, 6, 0.01

# How often calibration runs what costs less often than every step, as the default settings do.
CALIBRATE_COLLECT_EVERY, CALIBRATE_READING_EVERY = 5, 20


class Averager(Protocol):
    """Follows one training run.

    Attributes:
        train_step: the operation that a training step with `optimizer` is charged as.
        step_operations: the most that following a step can add to it.
        read_operations: the most that reading the average can cost.
    """

    train_step: str
    step_operations: Mapping[str, int]
    read_operations: Mapping[str, int]

    @property
    def optimizer(self) -> Optimizer:
        """The one to step."""

    def after_step(self, spent: float) -> str | None:
        """Follow a step, at this fraction of the budget; returns the operation it took, if any."""

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """A context that gives the model to evaluate, and the operations that cost something."""

    def operations(self) -> Mapping[str, Operation]:
        """How calibration runs each operation that it adds, the training step left out.

        They run after training steps with `optimizer`, in this order.
        """

    def state_dict(self) -> dict[str, Any]:
        """All it holds beyond the optimizer's and the model's own state dicts.

        Plain values and tensors, fit for `torch.load(weights_only=True)`. As in torch, tensors are
        references: save or copy it before the next step.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the last bit.

        Raises:
            ValueError: it is of another averager or model; nothing has been changed.
        """


class Live:
    """No average: the live weights. Other averagers, and those of your own, begin from it."""

    train_step = "train_step"
    step_operations: Mapping[str, int] = {}
    read_operations: Mapping[str, int] = {}

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Nothing to do."""
        return None

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The model itself."""
        return nullcontext(self.model), {}

    def operations(self) -> Mapping[str, Operation]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that there is nothing to load."""
        check_keys(state, self.state_dict())


def check_keys(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse the state of another averager: one with other keys than one's own.

    Raises:
        ValueError: the keys differ.
    """
    if state.keys() != own.keys():
        raise ValueError(
            f"the saved averager holds {', '.join(state) or 'nothing'} and this one "
            f"{', '.join(own) or 'nothing'}: it was saved by another method"
        )


class Lawa(Live):
    """The mean of the k latest snapshots, BatchNorm's running statistics included.

    The window is in the state dict of `optimizer`, a LAWA.
    """

    step_operations: Mapping[str, int] = {"collect": 1}
    read_operations: Mapping[str, int] = {"average": 1}
    optimizer: LAWA

    def __init__(self, model: nn.Module, optimizer: Optimizer, k: int, every: Every) -> None:
        super().__init__(model, LAWA(optimizer, k, every, buffers=model))

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """LAWA has collected in its step, or not."""
        schedule = self.optimizer.schedule
        return "collect" if schedule.last_collect == schedule.steps else None

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The model under `averaged()`; live until the first collect."""
        return self._averaged(), self.read_operations if self.optimizer.held else {}

    @contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        with self.optimizer.averaged(if_empty="live"):
            yield self.model

    def operations(self) -> Mapping[str, Operation]:
        """A collect, and the mean put into the model and taken out again."""

        def average() -> None:
            with self._averaged():
                pass

        return {
            "collect": Operation(self.optimizer.collect, every=CALIBRATE_COLLECT_EVERY),
            "average": Operation(average, every=CALIBRATE_READING_EVERY),
        }


def fixed_decay(decay: float, step: int) -> float:
    """A decay, warmed up as min(d, (1+t)/(10+t)) so that the first weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def growing_half_life(share: float, step: int) -> float:
    """A decay whose half-life is this share of the steps so far, for any length of training.

    The weight of the step before last has halved once so many steps have passed.
    """
    return math.pow(0.5, 1 / max(1.0, share * step))


class Ema(Live):
    """An exponential moving average of every step, with a decay for each.

    Args:
        model: that is trained.
        optimizer: that trains it.
        decay_at: the decay by the number of updates before, from 1.
    """

    step_operations: Mapping[str, int] = {"ema_update": 1}

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, decay_at: Callable[[int], float]
    ) -> None:
        super().__init__(model, optimizer)
        self.average = AveragedModel(
            model, multi_avg_fn=partial(_ema_update, decay_at), use_buffers=True
        )

    def after_step(self, spent: float) -> str | None:  # noqa: ARG002
        """Move the average."""
        self.average.update_parameters(self.model)
        return "ema_update"

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """A model of its own, there at any time."""
        return nullcontext(self.average.module), {}

    def operations(self) -> Mapping[str, Operation]:
        """An update."""
        return {"ema_update": Operation(lambda: self.after_step(0.0))}

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"average": _tensors(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        _load_tensors(self.average, state["average"])


@torch.no_grad()
def _ema_update(
    decay_at: Callable[[int], float],
    averaged: tuple[Tensor, ...] | list[Tensor],
    current: tuple[Tensor, ...] | list[Tensor],
    updates: Tensor | int,
) -> None:
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - decay_at(int(updates)))
    else:
        torch._foreach_copy_(averaged, current)


class Swa(Live):
    """The mean of snapshots from the last part, BatchNorm's statistics recomputed at a reading.

    Izmailov et al. (arXiv 1803.05407) at a constant rate. Before that part there is no average,
    and the live weights are read.

    Args:
        model: that is trained.
        optimizer: that trains it.
        statistics_batches: inputs that the statistics are recomputed from, if there are any.
        start: the fraction of the budget from which every tenth step is taken in.
    """

    step_operations: Mapping[str, int] = {"swa_update": 1}

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        statistics_batches: Sequence[Tensor],
        start: float,
    ) -> None:
        super().__init__(model, optimizer)
        self.start = start
        self.average = AveragedModel(model)
        self.statistics_batches = statistics_batches if has_batchnorm(model) else ()
        self.read_operations = {"statistics": 1} if self.statistics_batches else {}
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

    def reading(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """The averaged model, its statistics up to date."""
        if int(self.average.n_averaged) == 0:
            return nullcontext(self.model), {}
        return self._with_statistics(), self.read_operations

    @contextmanager
    def _with_statistics(self) -> Iterator[nn.Module]:
        if self.statistics_batches:
            recompute_statistics(self.average.module, self.statistics_batches)
        yield self.average.module

    def operations(self) -> Mapping[str, Operation]:
        """An update, and the statistics where there are any."""

        def recompute() -> None:
            recompute_statistics(self.average.module, self.statistics_batches)

        update = Operation(lambda: self.average.update_parameters(self.model), every=SWA_EVERY)
        if not self.statistics_batches:
            return {"swa_update": update}
        return {
            "swa_update": update,
            "statistics": Operation(recompute, every=CALIBRATE_READING_EVERY),
        }

    def state_dict(self) -> dict[str, Any]:
        """The average, and how far the last part is."""
        return {"average": _tensors(self.average), "passed": self._passed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; raises as `Averager` says."""
        check_keys(state, self.state_dict())
        _load_tensors(self.average, state["average"])
        self._passed = state["passed"]


class CyclicSwa(Swa):
    """SWA that takes in the weights at the end of each cycle of `falling_cycles`, and no others."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, statistics_batches: Sequence[Tensor]
    ) -> None:
        super().__init__(model, optimizer, statistics_batches, CYCLES_START)

    def _is_due(self, spent: float) -> bool:
        before, self._passed = self._passed, min(int(cycles_passed(spent)), CYCLES)
        return self._passed > before


def cycles_passed(fraction: float) -> float:
    """Cycles of cyclic SWA that are over at this fraction of the budget; zero before the first."""
    return max(0.0, (fraction - CYCLES_START) / CYCLE)


def falling_cycles(fraction: float) -> float:
    """The rate of cyclic SWA: constant, then several linear falls from the peak.

    Izmailov et al. (arXiv 1803.05407), section 3.2: a rate that jumps back up at once, and falls to
    a small one at the end of a cycle, where the weights are taken in. After the last it stays low.
    """
    passed = cycles_passed(fraction)
    into = 1.0 if passed >= CYCLES else passed % 1
    return 1 - (1 - LOWEST) * into


def recompute_statistics(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Make BatchNorm's running statistics those of these batches, with the model's weights.

    The mode of the model and torch's random generator (dropout draws from it) stay as they were.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        update_bn(batches, model, device)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model has running statistics to recompute."""
    # update_bn looks for this very class.
    base: Any = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, base) for module in model.modules())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that a state dict of the model leaves out."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _load_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the model's own.

    Raises:
        ValueError: they have other names, shapes or dtypes; nothing has been changed.
    """
    own = _tensors(model)
    for name in own.keys() | saved.keys():
        for_saved, for_own = (
            f"{tuple(part[name].shape)} {part[name].dtype}" if name in part else "none"
            for part in (saved, own)
        )
        if for_saved != for_own:
            raise ValueError(
                f"the saved average has {for_saved} for {name} and this model {for_own}: it was "
                "saved with another model"
            )
    for name, tensor in own.items():
        tensor.copy_(saved[name])
