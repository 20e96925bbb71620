"""The average in the model: for the length of a block, or from `eval()` to `train()`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ContextDecorator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lawa_opt.average import Average
from lawa_opt.base import refuse_lasting_state
from lawa_opt.batchnorm import model_with_statistics, recompute_statistics, run_batches
from lawa_opt.buffers import can_be_written
from lawa_opt.interrupts import HeldSignals
from lawa_opt.messages import warn
from lawa_opt.ring import UNIFORM, Ring
from lawa_opt.swap import Swap
from lawa_opt.swaps import Swaps
from lawa_opt.weights_by_step import Weigh, Weights, weighing

# torch.compiler.disable would import the whole compiler with this module; this one waits for it.
outside_graphs = torch._disable_dynamo  # type: ignore[attr-defined]


class _Uncounted:
    """Stands for a parameter where there is none whose writes torch counts."""

    _version = None


class Exchange:
    """Puts the average into the model and the live weights back.

    Attributes:
        swaps: those under way.
        first: the first parameter, as of the latest collect or stamp: a load of the model writes to
            all, so that it tells. Each step stamps it, and to look it up would cost half of that.
        version: its version when it was last as it is by our doing; None if unknown.
        is_between_steps: whether a first step has moved the weights away, and no second one on.
    """

    def __init__(self, base: Optimizer, average: Average) -> None:
        self.base = base
        self.average = average
        self.swaps = Swaps()
        self.first: Any = _Uncounted
        self.stamp()
        self.version: int | None = None
        self.is_between_steps = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "version": None}  # a copied tensor counts its versions anew

    def stamp(self) -> None:
        """Remember that the weights are as they are by our doing."""
        parameters: list[Tensor] = next((g["params"] for g in self.base.param_groups), [])
        counted = parameters and not parameters[0].is_inference()
        self.first = parameters[0] if counted else _Uncounted
        self.version = self.first._version

    def refuse_collect(self) -> None:
        """Refuse a snapshot of weights that are none of the training's own.

        Raises:
            RuntimeError: the average is in the model, or they are as a first step has left them.
        """
        self.swaps.refuse_any("collect()")
        if self.is_between_steps:
            raise RuntimeError(
                "collect() between first_step() and second_step() would take the weights that were "
                "moved away: call it after second_step(), or train on"
            )

    @outside_graphs
    @torch.no_grad()
    def prepared(
        self, k: int | None, weigh: Weigh, run: nn.Module | None = None
    ) -> tuple[Swap, list[Ring]]:
        """Return the live weights of all that an average will replace, and where that is from.

        Args:
            k: of so many snapshots.
            weigh: gives their weights.
            run: a model whose other buffers are kept too, for it will be run in training mode.
        """
        rings = self.average.nonempty_rings(k, weigh)
        known = {id(tensor) for ring in rings for tensor in ring.tensors}
        buffers = [] if run is None else [b for b in run.buffers() if can_be_written(b)]
        others = [buffer for buffer in buffers if id(buffer) not in known]
        return Swap.of(rings, others, self.average.buffers), rings

    @outside_graphs
    @torch.no_grad()
    def begin(self, swap: Swap, rings: list[Ring], k: int | None, weigh: Weigh) -> None:
        """Put the average into the model."""
        self.swaps.enter(swap)
        swap.write(rings, k, weigh)

    @outside_graphs
    @torch.no_grad()
    def end(self, swap: Swap, *, keep_changed: bool = False) -> None:
        """Put the live weights back; see `Swaps.leave`."""
        self.swaps.leave(swap, keep_changed=keep_changed)
        self.stamp()

    def until_train(self) -> None:
        """Put the average into the model, unless it is there or there is none."""
        if self.swaps:
            return
        first, before = self.first, self.version
        self.stamp()
        # Once: what was written and put back, as by an EMA in between, is two writes.
        written = self.first is first and before is not None and self.version == before + 1
        if hasattr(self.base, "eval"):
            self.base.eval()
        if not self.average.window.num_snapshots:
            warn("eval(): the window is empty, so the weights are live")
            return
        if written:
            self.average.say(
                "eval(): the weights were written to after the latest step (a checkpoint loaded, "
                "or weights clipped after step()?). The average of the window, which has not seen "
                "that, takes their place; window.clear() keeps them"
            )
        signals = HeldSignals(Exchange.until_train)
        try:
            signals.hold()
            self.begin(*self.prepared(None, UNIFORM), None, UNIFORM)
        except BaseException:
            if self.swaps:
                self.end(self.swaps[0])
            raise
        finally:
            signals.release()

    def train(self) -> None:
        """Put the live weights back, but for what others have written meanwhile."""
        if self.swaps:
            swap, signals = self.swaps[0], HeldSignals(Exchange.train)
            # Twice, for an interrupt may come in between.
            try:
                signals.hold()
                self.end(swap, keep_changed=True)
            finally:
                self.end(swap, keep_changed=True)
                signals.release()
            if swap.changed:
                warn(
                    f"train(): {len(swap.changed)} of {len(swap.tensors)} tensors were written to "
                    "since eval(), as by loading a checkpoint into the model: they are kept, and "
                    "their live values from before eval() are gone"
                )
            self.average.warn_of_half(swap, self.swaps.began)
        if hasattr(self.base, "train"):
            self.base.train()
            self.stamp()

    def restart(self, k: int | None, weigh: Weigh, *, reset_state: bool) -> None:
        """Make the average the live weights, for good."""
        self.swaps.refuse_any("restart_from_average()")
        if reset_state:
            refuse_lasting_state(self.base)
        self.average.write(k, weigh)
        self.stamp()
        if reset_state:
            self.base.state.clear()

    def resume(self, saved: Swap | None) -> None:
        """Go on with a swap that was under way when a checkpoint was saved, or with none."""
        if self.swaps:
            self.end(self.swaps[0], keep_changed=True)
        if saved is not None:
            self.swaps.enter(saved)
        self.version, self.is_between_steps = None, False


class AveragedBlock(ContextDecorator, AbstractContextManager[None]):
    """A block with the average in the model.

    A class, for an interrupt in the machinery of a generator would leave the average there.
    """

    def _recreate_cm(self) -> AveragedBlock:
        """Return a block for each call of a decorated function."""
        return AveragedBlock(self.exchange, self.k, self.weigh, self.if_empty, self.loader)

    def __init__(
        self,
        exchange: Exchange,
        k: int | None,
        weights: Weights,
        if_empty: str,
        loader: Iterable[Any] | None,
    ) -> None:
        if if_empty not in ("raise", "live"):
            raise ValueError(f'if_empty must be "raise" or "live": {if_empty!r}')
        self.exchange = exchange
        self.k = k
        self.weigh = weighing(weights)
        self.if_empty = if_empty
        self.loader = loader
        self.model = None
        if loader is not None:
            self.model = model_with_statistics(exchange.average.buffers, loader)
        self.swap: Swap | None = None
        self.signals = HeldSignals(
            AveragedBlock.__enter__, AveragedBlock.__exit__, but_not_in=run_batches
        )

    def __enter__(self) -> None:
        if self.swap is not None:
            raise RuntimeError(
                "this averaged() block was entered before: call averaged() again for each block"
            )
        if self.if_empty == "live" and not self.exchange.average.window.num_snapshots:
            return
        try:
            self.signals.hold()
            self.swap, rings = self.exchange.prepared(self.k, self.weigh, self.model)
            self.exchange.begin(self.swap, rings, self.k, self.weigh)
            self.signals.run_waiting()
            if self.model is not None and self.loader is not None:
                recompute_statistics(self.model, self.loader)
                self.swap.has_own_statistics = True
                self.swap.stamp()
        except BaseException:
            self._put_back()
            self.signals.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Twice, for an interrupt may come in between.
        try:
            try:
                self._put_back()
            finally:
                self._put_back()
        finally:
            self.signals.release()
        # An error on its way says enough.
        if kind is None and self.swap is not None and self.swap.changed:
            warn(
                f"{len(self.swap.changed)} of {len(self.swap.tensors)} tensors were written to "
                "inside averaged(): that is lost, and the live weights are back"
            )
        if kind is None and self.swap is not None and not self.exchange.swaps:
            self.exchange.average.warn_of_half(self.swap, self.exchange.swaps.began)

    def _put_back(self) -> None:
        if self.swap is not None:
            self.exchange.end(self.swap)
