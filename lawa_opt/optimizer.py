"""LAWA: a meta-optimizer that keeps the k latest weights and swaps in their mean."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from itertools import chain
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

# By name: under torch.compile, dynamo compiles every function that names torch itself, and to keep
# `step()` from it by a decorator would take as long as all the rest of it.
from torch.cuda import is_current_stream_capturing, is_initialized
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

from lawa_opt import coverage
from lawa_opt.buffers import Buffers
from lawa_opt.copies import copied_entries
from lawa_opt.interrupts import HeldSignals
from lawa_opt.loading import load_base, undo_of
from lawa_opt.messages import few, warn
from lawa_opt.ring import Ring
from lawa_opt.schedule import CollectSchedule, Every
from lawa_opt.state_check import check_entries
from lawa_opt.state_dict import (
    attach,
    detach,
    is_dcp_state_init,
    local_copies,
    restored_rings,
    set_schedule,
    window_state,
)
from lawa_opt.step_hooks import (
    call_pre_hooks,
    fires_global_hooks,
    step_without_global_hooks,
)
from lawa_opt.swap import Swap, Swaps, forget_derived
from lawa_opt.window import Window

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

# torch.compiler.disable would import the whole compiler with this module; this one waits for it.
_outside_graphs = torch._disable_dynamo  # type: ignore[attr-defined]


class LAWA(Optimizer):
    """Latest weight averaging (Kaddour 2022, arXiv 2209.14981, section 2) over any optimizer.

    Used exactly as the optimizer it wraps. After every `every`-th step it copies the parameters
    into a window of the k latest snapshots, on their own device; `averaged()` puts the uniform mean
    (1/k) sum theta_i into the parameters for the length of a block. Training itself is untouched:
    the live weights are bit for bit those of the wrapped optimizer alone.

        opt = LAWA(torch.optim.AdamW(model.parameters()), k=5)
        for x, y in batches:
            opt.zero_grad()
            loss(model(x), y).backward()
            opt.step()
        with opt.averaged():
            evaluate(model)

    Memory, with N the bytes of the parameters and buffers: k * N for the window from the first
    collect on (k * numel * dtype.itemsize with a `dtype`; of both, 1 / ranks where it is split over
    ranks), N more while averaged weights are in the model. A collect moves 2 * N bytes, a reading
    (k + 1) * N and the swap about 4 * N.

    Only the wrapper may be given to a scheduler, a GradScaler or a framework; the wrapped optimizer
    is `base`, and `base.state_dict()` is its own state dict. The mean is computed in float32 (or
    wider) from the snapshots and rounded once, to the parameters' dtype; it never drifts, and a
    non-finite snapshot is forgotten after k collects.

    Args:
        optimizer: any `torch.optim.Optimizer`, also of another package.
        k: snapshots in the window; the paper uses 6, above 16 is worse.
        every: steps between two collects, or "auto", or "manual" (see `CollectSchedule`); the paper
            collects once an epoch, which is "manual" and `collect()`.
        horizon: the share of the training so far that an "auto" window reaches back.
        start: the first step that may be collected.
        buffers: the model, or modules, whose saved buffers are treated like parameters:
            floating-point ones are averaged, of others the latest is taken. They are looked up by
            name at each use. Tensors may be given too, but `model.to()` puts others in their place.
        dtype: type of the snapshots, by default each parameter's; complex ones keep their own. A
            bfloat16 window of float32 parameters halves the memory and rounds each snapshot to 8
            bits: an error of at most 2**-8 times the mean of |theta_i|, in each element.
        device: where the snapshots are, by default with each parameter. With "cpu", parameters in
            CUDA memory are collected into pinned memory on a stream of its own: k * N there and N
            beside the parameters (in `dtype`, if given).
        mesh: for replicas (DDP), a mesh of one dimension whose ranks each hold only a part of
            every snapshot of a parameter. Reading the mean is then a collective that all ranks
            call; collecting never is. Buffers, which differ between ranks, and DTensors (FSDP2),
            which are split already, stay as they are.

    All of it is for one thread at a time, readings too: a mean that is taken in a thread beside
    training may be of two steps.

    In many processes all ranks must enter and leave averaged weights together. With parameters or
    a window in parts, `state_dict()` is for torch.distributed.checkpoint, on any number of ranks:
    `get_optimizer_state_dict(model, opt)`, with its own `flatten_optimizer_state_dict` off.

    Raises:
        TypeError: `optimizer` is no optimizer, or is a LAWA already, or `buffers` are none.
        ValueError: an argument out of its range, or the optimizer has no parameter of the modules
            given as `buffers`; nothing has been changed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        k: int = 5,
        every: Every = "auto",
        *,
        horizon: float = 0.1,
        start: int = 1,
        buffers: nn.Module | Iterable[nn.Module] | Iterable[Tensor] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        # Optimizer.__init__ is not called: it would make param_groups and state of its own.
        if isinstance(optimizer, LAWA):
            raise TypeError("this is a LAWA already; shorter windows are averaged(k=j)")
        if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
            raise TypeError(
                "LAWA wraps an optimizer, such as torch.optim.SGD(model.parameters(), lr=0.1): got "
                f"{type(optimizer).__name__}"
            )
        self.__setstate__(
            {
                "base": optimizer,
                "window": Window(k, dtype, mesh, device),
                "schedule": CollectSchedule(every, k, horizon, start),
                "buffers": Buffers(buffers),
                "swaps": Swaps(),
                "said": set(),
            }
        )
        coverage.refuse_masters(self.buffers.modules, self._parameters())

    # Proxies of frameworks copy __dict__ and must still see later changes, so none of these names
    # is ever bound again: what changes, changes inside the objects.
    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in _STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Of tensors of this process: a copy counts their versions anew.
        self.__dict__["version_after_step"] = []
        self.__dict__["kinds_with_buffers"] = []
        if self.buffers.tensors:
            kinds = [(weakref.ref(p), p.dtype, p.device) for p in self._parameters()]
            self.kinds_with_buffers[:] = kinds
        for name in _HOOKS:
            self.__dict__[name] = OrderedDict()

    base: Optimizer
    window: Window
    schedule: CollectSchedule
    buffers: Buffers
    swaps: Swaps
    said: set[str]
    kinds_with_buffers: list[tuple[weakref.ref[Tensor], torch.dtype, torch.device]]
    version_after_step: list[int]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state by parameter; the window is not in it."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    @property
    def num_snapshots(self) -> int:
        """Snapshots in the window, from 0 to k."""
        return self.window.num_snapshots

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots, on whatever device."""
        return self.window.nbytes

    @property
    def enabled(self) -> bool:
        """Say whether `step()` collects what is due; `collect()` always does."""
        return self.schedule.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self.schedule.enabled = enabled

    def __repr__(self) -> str:
        schedule = self.schedule
        return (
            f"{type(self).__name__}(k={schedule.k}, every={schedule.every!r}, "
            f"num_snapshots={self.num_snapshots}) of {self.base!r}"
        )

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Reset the gradients, as the wrapped optimizer does: arguments are passed on."""
        self.base.zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its parameters are collected from now on."""
        self.base.add_param_group(param_group)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the wrapped optimizer's step, then collect a snapshot if one is due.

        Hooks are called as torch does it, the global ones too: with this optimizer, those after
        the step when the snapshot has been taken.

        Args:
            *args: passed on, as is a closure.
            **kwargs: passed on.

        Raises:
            RuntimeError: averaged weights are in the model.
        """
        if self.swaps:
            self._refuse_if_averaged("step()")
        if kwargs and not args and is_dcp_state_init(self.base, kwargs):
            self.window.allocate(self._tensors())
            return self.base.step(**kwargs)
        theirs = fires_global_hooks(self.base) if global_pre_hooks or global_post_hooks else True
        if not theirs or self._optimizer_step_pre_hooks:
            before = chain(
                () if theirs else global_pre_hooks.values(),
                self._optimizer_step_pre_hooks.values(),
            )
            args, kwargs = call_pre_hooks(before, self, args, kwargs)
        if theirs:
            result = self.base.step(*args, **kwargs)
        else:
            result = step_without_global_hooks(self.base, args, kwargs)
        if is_initialized():
            self._refuse_if_captured()
        if self.schedule.step():
            self.collect()
        # As `_stamp`, written out: torch.compile would make a frame of a call.
        first = self.base.param_groups[0]["params"]
        counted = first and not first[0].is_inference()
        self.version_after_step[:] = (first[0]._version,) if counted else ()
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, (self, *args), kwargs)
        if not theirs:
            for post_hook in global_post_hooks.values():
                post_hook(self, (self, *args), kwargs)
        return result

    # Global hooks are fired here; unmarked, torch would fire them around this once more.
    step.hooked = True  # type: ignore[attr-defined]

    def _stamp(self) -> None:
        """Remember that the weights are as they are by our doing.

        A load of the model writes to all parameters, so that the first one tells.
        """
        first = self.base.param_groups[0]["params"]
        counted = first and not first[0].is_inference()
        self.version_after_step[:] = (first[0]._version,) if counted else ()

    def _refuse_if_captured(self) -> None:
        if is_current_stream_capturing():
            raise RuntimeError(
                "step() inside a CUDA graph would count and collect once, not at each replay: "
                "capture `base.step()`, and after each replay `if opt.schedule.step(): "
                "opt.collect()`"
            )

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    def _tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that there are now, known to the window as such."""
        parameters = self._parameters()
        if not self.buffers:
            return parameters
        for known, dtype, device in self.kinds_with_buffers:
            parameter = known()
            if parameter is not None and (parameter.dtype, parameter.device) != (dtype, device):
                raise RuntimeError(
                    f"a parameter is {parameter.dtype} on {parameter.device} and was {dtype} on "
                    f"{device} when the buffers were given: model.to() has put other tensors in "
                    "the place of these. Give LAWA the model itself, buffers=model"
                )
        buffers, replaced = self.buffers.look_up()
        self.window.rebind(replaced)
        return parameters + buffers

    @_outside_graphs
    @torch.no_grad()
    def collect(self) -> None:
        """Take a snapshot now, whatever the schedule says; for `every="manual"`, once an epoch.

        Raises:
            RuntimeError: averaged weights are in the model.
        """
        self._refuse_if_averaged("collect()")
        self.window.collect(self._tensors())
        self.schedule.last_collect = self.schedule.steps

    def _refuse_if_averaged(self, what: str) -> None:
        if self.swaps:
            raise RuntimeError(
                f"{what} while averaged weights are in the model: leave the `averaged()` block, or "
                "call train(), first"
            )

    def _nonempty_rings(self, k: int | None) -> list[Ring]:
        """Return the rings that hold snapshots, once `k` is known to be in range."""
        held = self.num_snapshots
        if held == 0:
            raise RuntimeError(
                f"the window is empty after {self.schedule.steps} steps with "
                f"every={self.schedule.every!r}: train on or collect() first, or ask for the live "
                'weights with averaged(if_empty="live")'
            )
        whole = isinstance(k, int) and not isinstance(k, bool)
        if k is not None and not (whole and 1 <= k <= held):
            raise ValueError(f"k must be from 1 to the {held} snapshots held: {k!r}")
        tensors = self._tensors()
        buffers = tensors[len(self._parameters()) :]
        # A cache that has grown since is no statistic: it stays as it is.
        grown = self.window.reshaped(buffers)
        rings = self.window.readable([t for t in tensors if id(t) not in grown])
        complete = sum(len(ring.tensors) for ring in rings) == len(tensors)
        if not complete or (self.buffers.modules and "coverage" not in self.said):
            self._say_what_stays_live(rings, buffers, grown)
        return rings

    def _say_what_stays_live(
        self, rings: list[Ring], buffers: list[Tensor], grown: set[int]
    ) -> None:
        """Warn of what is trained and has no snapshot, as far as that can be seen from here."""
        averaged = {id(tensor) for ring in rings for tensor in ring.tensors}
        for kind, tensors in (("parameters", self._parameters()), ("buffers", buffers)):
            missing = len({id(t) for t in tensors} - averaged - grown)
            if missing:
                self._say(
                    f"{missing} of the {kind} have no snapshot yet and stay live: they came after "
                    "the latest one, or a checkpoint was loaded that has none of them"
                )
        if self.buffers.modules and "coverage" not in self.said:
            self.said.add("coverage")
            coverage.warn_of_bare_optimizers(self.buffers.modules, averaged, self)

    def _say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self.said:
            self.said.add(text)
            warn(text)

    def averaged(
        self, k: int | None = None, *, if_empty: Literal["raise", "live"] = "raise"
    ) -> AbstractContextManager[None]:
        """Have the mean of the window in the parameters (and given buffers) within a block.

        The live weights come back bit for bit, also when the block raises or is interrupted;
        changes made to the weights inside are lost, with a warning where torch counts them, which
        it does not for `.data`. Blocks nest. For two
        optimizers over one model enter both: `with a.averaged(), b.averaged():`. For BatchNorm,
        pass `buffers=model` and call `torch.optim.swa_utils.update_bn(loader, model)` inside for
        exact statistics. What torch has cached of the weights (casts of an autocast block,
        parametrizations) is made again; what other packages keep of them is theirs to renew.

        Args:
            k: average the newest so many snapshots, from 1 to `num_snapshots`; by default, all.
            if_empty: "live" leaves the live weights in place while nothing has been collected.

        Raises:
            RuntimeError: the window is empty.
            ValueError: more snapshots asked for than are held.
        """
        return _Averaged(self, k, if_empty)

    def eval(self) -> None:
        """Put the mean into the model until `train()`, as Transformers and Accelerate call it.

        Does nothing where averaged weights are in already. With an empty window it warns and leaves
        the live weights. It warns too where the first parameter was written to once after the
        latest step, as by loading a checkpoint into the model: the mean goes in all the same. A
        wrapped optimizer with an eval() of its own is told first.
        """
        if self.swaps:
            return
        before = list(self.version_after_step)
        self._stamp()
        # Once: what was written and put back, as by an EMA in between, is two writes.
        written = before and self.version_after_step == [before[0] + 1]
        if hasattr(self.base, "eval"):
            self.base.eval()
        if not self.num_snapshots:
            warn("eval(): the window is empty, so the weights are live")
            return
        if written:
            self._say(
                "eval(): the weights were written to after the latest step (a checkpoint loaded, "
                "or weights clipped after step()?). The average of the window, which has not seen "
                "that, takes their place; window.clear() keeps them"
            )
        signals = HeldSignals(LAWA.eval)
        try:
            signals.hold()
            self._swap_in(*self._new_swap(None), None)
        except BaseException:
            if self.swaps:
                self._swap_out(self.swaps[0])
            raise
        finally:
            signals.release()

    def train(self) -> None:
        """Put the live weights back, bit for bit; does nothing where they are in already.

        Weights that hold something else than the average by then, as after loading a checkpoint
        (`load_best_model_at_end`), are kept with a warning: they are the live ones from then on.
        """
        if self.swaps:
            swap, signals = self.swaps[0], HeldSignals(LAWA.train)
            # Twice, for an interrupt may come in between.
            try:
                signals.hold()
                self._swap_out(swap, keep_changed=True)
            finally:
                self._swap_out(swap, keep_changed=True)
                signals.release()
            if swap.changed:
                warn(
                    f"train(): {len(swap.changed)} of {len(swap.tensors)} tensors were written to "
                    "since eval(), as by loading a checkpoint into the model: they are kept, and "
                    "their live values from before eval() are gone"
                )
        if hasattr(self.base, "train"):
            self.base.train()
            self._stamp()

    @_outside_graphs
    @torch.no_grad()
    def _new_swap(self, k: int | None) -> tuple[Swap, list[Ring]]:
        """Return the live weights of all that an average will replace, and where that is from."""
        rings = self._nonempty_rings(k)
        return Swap([tensor for ring in rings for tensor in ring.tensors], self.buffers), rings

    @_outside_graphs
    @torch.no_grad()
    def _swap_in(self, swap: Swap, rings: list[Ring], k: int | None) -> None:
        self.swaps.enter(swap)
        swap.write(rings, k)

    @_outside_graphs
    @torch.no_grad()
    def _swap_out(self, swap: Swap, *, keep_changed: bool = False) -> None:
        self.swaps.leave(swap, keep_changed=keep_changed)
        self._stamp()

    @torch.no_grad()
    def averaged_state_dict(
        self,
        model: nn.Module,
        k: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        others: Sequence[LAWA] = (),
    ) -> dict[str, Any]:
        """Return `model.state_dict()` with the mean in place of each tensor the window holds.

        Everything in it is a copy, tied weights too, so it can go to `safetensors.torch.save_file`
        or `torch.save` and training can go on. The model itself is not touched.

        Args:
            model: the model whose parameters are optimized.
            k: as in `averaged`.
            dtype: type of the means; `torch.float32` keeps what bfloat16 parameters would round.
            others: the LAWAs of further optimizers over this model, such as AdamW's beside Muon's.

        Raises:
            RuntimeError: the window is empty.
            ValueError: more snapshots asked for than are held, no tensor of the model is held, or
                only a part of what is trained, or buffers that the model has replaced were given.

        Warns:
            UserWarning: running statistics, as of BatchNorm, are in no window and so live.
        """
        windows = [self, *others]
        means: dict[int, Tensor] = {}
        entries = model.state_dict(keep_vars=True)
        for lawa in windows:
            means |= lawa._means(k, dtype)
        if not any(id(value) in means for value in entries.values()):
            raise ValueError(coverage.NOT_THE_MODELS)
        self._check_coverage(model, means, windows)
        return copied_entries(entries, means)

    def _means(self, k: int | None, dtype: torch.dtype | None) -> dict[int, Tensor]:
        """Return the mean of each tensor that the window holds, by the tensor's id."""
        means: dict[int, Tensor] = {}
        for ring in self._nonempty_rings(k):
            outs = [
                torch.empty_like(t, dtype=dtype if ring.averages else None) for t in ring.tensors
            ]
            ring.write_mean(outs, k)
            means.update((id(t), out.detach()) for t, out in zip(ring.tensors, outs, strict=True))
        return means

    def _check_coverage(
        self, model: nn.Module, means: dict[int, Tensor], windows: list[LAWA]
    ) -> None:
        """Refuse a part of an average, and warn of statistics that are not averaged."""
        for lawa in windows:
            coverage.refuse_replaced_buffers(model, lawa.buffers)
        coverage.refuse_unaveraged_parameters(model, means, windows)
        # Within a block, statistics are as they were made there.
        names = [] if self.swaps else coverage.unaveraged_statistics(model, means, windows)
        if names:
            self._say(
                f"{few(names)} are live beside averaged weights: give LAWA the model, "
                "buffers=model, or recompute them by torch.optim.swa_utils.update_bn"
            )
        if self.swaps and self.swaps[-1].rewritten_buffers():
            self._say(
                "statistics were computed anew inside this block: model.state_dict() has them, "
                "and averaged_state_dict() those of the window"
            )

    def averaged_model(
        self, model: nn.Module, k: int | None = None, *, others: Sequence[LAWA] = ()
    ) -> nn.Module:
        """Return a copy of the model with the weights of `averaged_state_dict`; raises as that."""
        weights = self.averaged_state_dict(model, k, others=others)
        twin = copy.deepcopy(model)
        twin.load_state_dict(weights)
        return twin

    @torch.no_grad()
    def restart_from_average(self, k: int | None = None, *, reset_state: bool = False) -> None:
        """Make the mean the live weights and train on from there (the paper's online mode).

        This does change the training. The window is kept.

        Args:
            k: as in `averaged`.
            reset_state: also forget the wrapped optimizer's state (momenta), which belongs to the
                weights left behind.

        Raises:
            RuntimeError: the window is empty, or averaged weights are in the model.
            TypeError: the state of this optimizer cannot be made again.
            ValueError: more snapshots asked for than are held.
        """
        self._refuse_if_averaged("restart_from_average()")
        if reset_state and isinstance(self.base, torch.optim.Adagrad):
            raise TypeError(
                "Adagrad makes its state when it is built and not again: restart without "
                "reset_state and set its state yourself"
            )
        rings = self._nonempty_rings(k)
        forget_derived(self._tensors())
        for ring in rings:
            ring.write_mean(ring.tensors, k)
        self._stamp()
        if reset_state:
            self.base.state.clear()

    @_outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, with the window in each parameter's entry.

        As in torch, tensors are references: save or copy it before the next step. Taken while
        averaged weights are in the model, it carries the live ones too, and a LAWA that loads it
        gives them back on `train()`. After the first step the window is always in it, even where
        nothing has been collected, since torch.distributed.checkpoint loads into equal keys.

        Of the schedule it carries the step, the step of the newest snapshot and `enabled`, which
        are states of a training; `every`, `horizon` and `start` are of the LAWA that loads it.

        Raises:
            RuntimeError: averaged weights are in the model and it is in parts.
        """
        if self.swaps and any(self.window.is_sharded(tensor) for tensor in self._tensors()):
            raise RuntimeError(
                "state_dict() of a model or window in parts while averaged weights are in the "
                "model: its checkpoint could not give the live weights back, so call train(), or "
                "leave the `averaged()` block, on all ranks first (under Transformers' Trainer, "
                "which saves right after it evaluates, call it in a callback's on_evaluate)"
            )
        if self.schedule.steps:
            self.window.allocate(self._tensors())
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = dict(self.base.state_dict())
        entries = window_state(self.window, self.schedule, self.swaps[0] if self.swaps else None)
        attach(state_dict, entries, self.param_groups, self.buffers.now())
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @_outside_graphs
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the wrapped optimizer's own state dict.

        The latter leaves an empty window, so a project can adopt LAWA in mid-training. Snapshots
        are copied, to the parameters' device and the window's dtype; the window there was before
        goes when the new one is filled, so `window.clear()` first where there is no room for both.
        Collecting is then switched on or off as it was when saved, and left as it is by a state
        dict that does not say.

        With averaged weights in the model, they are taken out first, as by `train()`: weights that
        were loaded into the model meanwhile stay.

        Args:
            state_dict: as returned by `state_dict`, also after `torch.load(weights_only=True)`.

        Raises:
            ValueError: another k, other shapes or other group sizes, a damaged state dict, or one
                that the wrapped optimizer refuses; nothing has been changed, as far as the wrapped
                optimizer keeps its state in itself.
        """
        self._tensors()  # refuses buffers that were replaced
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"a state dict is a dict: got {type(state_dict).__name__}")
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        named = detach(state_dict, self.param_groups, self.buffers.now())
        check_entries(named, self.window)
        entries = [(tensor, entry) for _, tensor, entry in named]
        rings = restored_rings(self.window, entries)
        live = [(t, entry["lawa_live"]) for t, entry in entries if "lawa_live" in entry]
        swaps = []
        if live:
            tensors, weights = map(list, zip(*live, strict=True))
            swaps = [Swap(tensors, self.buffers, local_copies(weights, tensors))]
        undo = undo_of(self.base, self.window, self.schedule)
        try:
            load_base(self.base, state_dict)
            self.window.replace(rings)
            set_schedule(self.schedule, [entry for _, entry in entries])
        except BaseException:
            undo()
            raise
        if self.swaps:
            self._swap_out(self.swaps[0], keep_changed=True)
        for swap in swaps:
            self.swaps.enter(swap)
        self.version_after_step.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


class _Averaged(ContextDecorator, AbstractContextManager[None]):
    """A block with the average in the model.

    A class, for an interrupt in the machinery of a generator would leave the average there.
    """

    def _recreate_cm(self) -> _Averaged:
        """Return a block for each call of a decorated function."""
        return _Averaged(self.lawa, self.k, self.if_empty)

    def __init__(self, lawa: LAWA, k: int | None, if_empty: str) -> None:
        self.lawa = lawa
        self.k = k
        self.if_empty = if_empty
        self.swap: Swap | None = None
        self.signals = HeldSignals(_Averaged.__enter__, _Averaged.__exit__)

    def __enter__(self) -> None:
        lawa = self.lawa
        if self.swap is not None:
            raise RuntimeError("this averaged() block was entered before: call averaged() anew")
        if self.if_empty == "live" and not lawa.num_snapshots:
            return
        try:
            self.signals.hold()
            self.swap, rings = lawa._new_swap(self.k)
            lawa._swap_in(self.swap, rings, self.k)
            self.signals.run_waiting()
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

    def _put_back(self) -> None:
        if self.swap is not None:
            self.lawa._swap_out(self.swap)


_STATE = ("base", "window", "schedule", "buffers", "swaps", "said")
