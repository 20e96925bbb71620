"""LAWA: a meta-optimizer that keeps the k latest weights and swaps in their mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

# By name: under torch.compile, dynamo compiles every function that names torch itself, and to keep
# `step()` from it by a decorator would take as long as all the rest of it.
from torch.cuda import is_initialized
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

from lawa_opt.average import Average
from lawa_opt.base import wrapped
from lawa_opt.buffers import Buffers
from lawa_opt.copies import averaged_copies, copy_with
from lawa_opt.exchange import AveragedBlock, Exchange, outside_graphs
from lawa_opt.fitting import FittedWeights, Loss, fitted_weights
from lawa_opt.forwarding import Forwarding, forwarded
from lawa_opt.hooks import changed_by, hooked_step, refuse_captured_step
from lawa_opt.loading import load, refuse_unloadable
from lawa_opt.schedule import CollectSchedule, Every
from lawa_opt.state_dict import is_dcp_state_init, saved
from lawa_opt.swaps import Swaps
from lawa_opt.weights_by_step import Weights, weighing
from lawa_opt.window import Window


class LAWA(Forwarding):
    """Latest weight averaging (Kaddour 2022, arXiv 2209.14981, section 2) over any optimizer.

    Used exactly as the optimizer it wraps: `opt = LAWA(torch.optim.AdamW(model.parameters()))`.
    After every `every`-th step it copies the parameters into a window of the k latest snapshots, on
    their own device; `averaged()` puts the uniform mean (1/k) sum theta_i into the parameters for
    the length of a block. Training itself is untouched: the live weights are bit for bit those of
    the wrapped optimizer alone. Only the wrapper may be given to a scheduler, a GradScaler or a
    framework; the wrapped one is `base`. docs/using.md tells the costs, and of ranks.

    Args:
        optimizer: any `torch.optim.Optimizer`, also of another package, or a list of them over one
            model (Muon and AdamW), which step in turn and show their groups as one optimizer's.
        k: snapshots in the window; the paper uses 6, above 16 is worse.
        every: steps between two collects, "auto", or "manual" (see `CollectSchedule`).
        horizon: the share of the training so far that an "auto" window reaches back.
        start: the first step that may be collected.
        buffers: the model, or modules, whose saved buffers are treated like parameters:
            floating-point ones are averaged, of others the latest is taken. They are looked up by
            name at each use. Tensors may be given too, but `model.to()` puts others in their place.
        dtype: type of the snapshots, by default each parameter's; complex ones keep their own.
        device: where the snapshots are, by default with each parameter.
        mesh: for replicas (DDP), a mesh of one dimension whose ranks each hold a part of the
            window; reading the mean is then a collective.
        cache: keep the mean that was read last, N bytes more, for a second reading before the next
            collect: that is a copy then, and no other mean.
        restart_every: steps between two `restart_from_average()`, as an epoch's (2402.09240).

    Raises:
        TypeError: `optimizer` is no optimizer, or is a LAWA already, or `buffers` are none.
        ValueError: an argument is out of its range, or the optimizer is not of the model.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        k: int = 5,
        every: Every = "auto",
        *,
        horizon: float = 0.1,
        start: int = 1,
        buffers: nn.Module | Iterable[nn.Module] | Iterable[Tensor] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        mesh: DeviceMesh | None = None,
        cache: bool = False,
        restart_every: int | None = None,
    ) -> None:
        base = wrapped(optimizer)
        window = Window(k, dtype, mesh, device, cache)
        schedule = CollectSchedule(every, k, horizon, start, restart_every)
        average = Average(base, window, schedule, Buffers(buffers))
        exchange = Exchange(base, average)
        super().__init__(
            base=base,
            window=window,
            schedule=schedule,
            average=average,
            exchange=exchange,
            swaps=exchange.swaps,
        )

    window: Window
    schedule: CollectSchedule
    average: Average
    exchange: Exchange
    swaps: Swaps

    num_snapshots: int = forwarded("window", "num_snapshots")
    """Snapshots in the window, from 0 to k."""
    nbytes: int = forwarded("window", "nbytes")
    """Bytes of all snapshots, on whatever device."""
    enabled: bool = forwarded("schedule", "enabled")
    """Whether `step()` collects what is due; `collect()` always does."""

    def __repr__(self) -> str:
        k, every, held = self.window.k, self.schedule.every, self.num_snapshots
        return f"{type(self).__name__}({k=}, {every=}, num_snapshots={held}) of {self.base!r}"

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the wrapped optimizer's step, then collect a snapshot if one is due.

        Arguments, such as a closure, are passed on. Hooks are called as torch does it, the global
        ones too: with this optimizer, those after the step when the snapshot has been taken. It is
        refused while averaged weights are in the model.
        """
        if self.swaps:
            self.swaps.refuse_any("step()")
        if kwargs and not args and is_dcp_state_init(self.base, kwargs):
            self.window.allocate(self.average.tensors())
            return self.base.step(**kwargs)
        step, call_post_hooks = self.base.step, None
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if own or global_pre_hooks or global_post_hooks:
            step, args, kwargs, call_post_hooks = hooked_step(self, self.base, args, kwargs)
        result = step(*args, **kwargs)
        if is_initialized():
            refuse_captured_step()
        if self.schedule.step():
            self.collect()
        if self.schedule._restart_every and self.schedule.is_restart() and self.num_snapshots:
            self.restart_from_average()
        # Of what `exchange.stamp()` does the part that changes at each step.
        exchange = self.exchange
        exchange.version = exchange.first._version
        if call_post_hooks:
            call_post_hooks()
        return result

    # Global hooks are fired here; unmarked, torch would fire them around this once more.
    step.hooked = True  # type: ignore[attr-defined]

    @outside_graphs
    @torch.no_grad()
    def collect(self) -> None:
        """Take a snapshot now, as once an epoch for `every="manual"`; not of averaged weights."""
        self.exchange.refuse_collect()
        self.window.collect(self.average.tensors(), self.schedule.steps)
        self.schedule.last_collect = self.schedule.steps
        self.exchange.stamp()

    def averaged(
        self,
        k: int | None = None,
        *,
        weights: Weights = "uniform",
        if_empty: Literal["raise", "live"] = "raise",
        update_bn: Iterable[Any] | None = None,
    ) -> AbstractContextManager[None]:
        """Have the mean of the window in the parameters (and given buffers) within a block.

        The live weights come back bit for bit, also when the block raises or is interrupted;
        changes made to the weights inside are lost, with a warning where torch counts them (not by
        `.data`). Blocks nest; of two LAWAs over one model, enter both.

        Args:
            k: average the newest so many snapshots, from 1 to `num_snapshots`; by default, all.
            weights: of the snapshots: a name, such as "1-sqrt", a file, one weight each, oldest
                first, or what makes them of their steps (see `average_checkpoints`).
            if_empty: with nothing collected, "raise" a RuntimeError or leave the weights "live".
            update_bn: batches to compute BatchNorm's statistics from, with the average in the model
                given as `buffers`; the live statistics come back too (see docs/using.md).
        """
        return AveragedBlock(self.exchange, k, weights, if_empty, update_bn)

    def eval(self) -> None:
        """Put the mean into the model until `train()`, as Transformers and Accelerate call it.

        Does nothing where it is in already. It warns of an empty window, and leaves the live
        weights; and of weights written to after the latest step, as by loading a checkpoint: the
        mean goes in all the same. A wrapped optimizer with an eval() of its own is told first.
        """
        self.exchange.until_train()

    def train(self) -> None:
        """Put the live weights back, bit for bit; does nothing where they are in already.

        Weights that hold something else than the average by then, as after loading a checkpoint
        (`load_best_model_at_end`), are kept with a warning: they are the live ones from then on.
        """
        self.exchange.train()

    @torch.no_grad()
    def averaged_state_dict(
        self,
        model: nn.Module,
        k: int | None = None,
        *,
        weights: Weights = "uniform",
        dtype: torch.dtype | None = None,
        others: Sequence[LAWA] = (),
    ) -> dict[str, Any]:
        """Return `model.state_dict()` with the mean in place of each tensor the window holds.

        Everything in it is a copy, tied weights too, as `safetensors.torch.save_file` needs it. A
        warning names running statistics, as of BatchNorm, that are in no window and so live.

        Args:
            model: the model whose parameters are optimized.
            k: as in `averaged`.
            weights: as in `averaged`.
            dtype: type of the means; `torch.float32` keeps what bfloat16 parameters would round.
            others: the LAWAs of further optimizers over this model, such as AdamW's beside Muon's.

        Raises:
            RuntimeError: the window is empty.
            ValueError: `k` or `weights` do not fit, or not all that is trained is in the window.
        """
        return averaged_copies(model, [self, *others], k, weights, dtype)

    def averaged_model(
        self,
        model: nn.Module,
        k: int | None = None,
        *,
        weights: Weights = "uniform",
        others: Sequence[LAWA] = (),
    ) -> nn.Module:
        """Return a copy of the model with the weights of `averaged_state_dict`; raises as that."""
        return copy_with(self.averaged_state_dict(model, k, weights=weights, others=others), model)

    def fit_weights(self, loss: Loss, batches: Sequence[Any]) -> FittedWeights:
        """Return the weights of the snapshots whose average has the least loss on some batches.

        Every second batch is fitted to (2205.13104), by a loss and a gradient each in at most 30
        passes; the others tell the gain over the uniform mean, and a warning where there is none.
        The live weights, `.grad` and the window stay as they are.

        Args:
            loss: returns the mean loss of a batch with the weights that are in the model, as a
                tensor that can be differentiated. Have the model in eval mode.
            batches: held-out ones, two at the least, of equal size.

        Raises:
            RuntimeError: the window is empty.
            ValueError: there are too few batches, the window is in parts, complex, or not equally
                full for all tensors, or a loss is not finite, or has no gradient by the weights.
            TypeError: `loss` returns no tensor.
        """
        return fitted_weights(self.average, self.averaged, loss, batches)

    @outside_graphs
    @torch.no_grad()
    def restart_from_average(
        self, k: int | None = None, *, weights: Weights = "uniform", reset_state: bool = False
    ) -> None:
        """Make the mean the live weights, which changes the training (the paper's online mode).

        Args:
            k: as in `averaged`.
            weights: as in `averaged`.
            reset_state: forget the wrapped optimizer's state too, if it is made again.
        """
        self.exchange.restart(k, weighing(weights), reset_state=reset_state)

    @outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, with the window in each parameter's entry.

        As in torch, tensors are references: save or copy it before the next step. It carries the
        live weights too while averaged ones are in the model (of one in parts, it is refused then).
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = saved(self.average, self.swaps[0] if self.swaps else None)
        return changed_by(self._optimizer_state_dict_post_hooks.values(), self, state_dict)

    @outside_graphs
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the wrapped optimizer's own state dict.

        The latter leaves an empty window. Averaged weights are taken out first, as by `train()`. Of
        a window of another `k`, the newest snapshots that fit are kept, with a warning.

        Raises:
            ValueError: it does not fit, is damaged, or the wrapped optimizer refuses it; nothing
                has been changed, as far as that keeps its state in itself.
        """
        refuse_unloadable(state_dict, self.average)
        hooks = self._optimizer_load_state_dict_pre_hooks.values()
        self.exchange.resume(load(changed_by(hooks, self, dict(state_dict)), self.average))
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
