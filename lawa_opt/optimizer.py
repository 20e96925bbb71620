"""LAWA: a meta-optimizer that keeps the k latest weights and lends their mean."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

# By name: under torch.compile, dynamo compiles every function that names torch itself, and to keep
# `step()` from it by a decorator would take as long as all the rest of it.
from torch.cuda import is_current_stream_capturing, is_initialized
from torch.optim import Optimizer

from lawa_opt import saved
from lawa_opt.distributed import forget_gathered, local
from lawa_opt.interval import Every, Interval
from lawa_opt.window import Ring, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

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

# The tensors under an average, and a copy of each from before.
_Swap = list[tuple[list[Tensor], list[Tensor]]]


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
        every: steps between two collects, or "auto", or "manual" (see `Interval`); the paper
            collects once an epoch, which is "manual" and `collect()`.
        span: the share of the training so far that an "auto" window reaches back.
        start: the first step that may be collected.
        buffers: tensors to treat like parameters, such as `model.buffers()`: floating-point ones
            are averaged, of others the latest is taken.
        dtype: type of the snapshots, by default each parameter's; complex ones keep their own. A
            bfloat16 window of float32 parameters halves the memory and rounds each snapshot to 8
            bits: an error of at most 2**-8 times the mean of |theta_i|, in each element.
        device: where the snapshots are, by default with each parameter. With "cpu", parameters in
            CUDA memory are collected into pinned memory on a stream of its own: k * N there and N
            beside the parameters (in `dtype`, if given).
        split_over: for replicas (DDP), a mesh of one dimension whose ranks each hold only a part of
            every snapshot of a parameter. Reading the mean is then a collective that all ranks
            call; collecting never is. Buffers, which differ between ranks, and DTensors (FSDP2),
            which are split already, stay as they are.

    In many processes all ranks must enter and leave averaged weights together. With parameters or
    a window in parts, `state_dict()` is for torch.distributed.checkpoint, on any number of ranks:
    `get_optimizer_state_dict(model, opt)`, with its own `flatten_optimizer_state_dict` off.

    Raises:
        TypeError: `optimizer` is no optimizer, or is a LAWA already.
        ValueError: an argument out of its range; nothing has been changed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        k: int = 5,
        every: Every = "auto",
        *,
        span: float = 0.1,
        start: int = 1,
        buffers: Iterable[Tensor] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        split_over: DeviceMesh | None = None,
    ) -> None:
        # Optimizer.__init__ is not called: it would make param_groups and state of its own.
        if isinstance(optimizer, LAWA):
            raise TypeError("this is a LAWA already; shorter windows are averaged(latest=j)")
        if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
            raise TypeError(
                "LAWA wraps an optimizer, such as torch.optim.SGD(model.parameters(), lr=0.1): got "
                f"{type(optimizer).__name__}"
            )
        self.__setstate__(
            {
                "base": optimizer,
                "window": Window(k, dtype, split_over, device),
                "interval": Interval(every, k, span, start),
                "buffers": list(buffers),
                "swaps": [],
            }
        )

    # Proxies of frameworks copy __dict__ and must still see later changes, so none of these names
    # is ever bound again: what changes, changes inside the objects.
    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in _STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in _HOOKS:
            self.__dict__[name] = OrderedDict()

    base: Optimizer
    window: Window
    interval: Interval
    buffers: list[Tensor]
    swaps: list[_Swap]

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
    def held(self) -> int:
        """Snapshots in the window, from 0 to k."""
        return self.window.held

    def __repr__(self) -> str:
        interval = self.interval
        return f"LAWA(k={interval.k}, every={interval.every!r}, held={self.held}) of {self.base!r}"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the wrapped optimizer does."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its parameters are collected from now on."""
        self.base.add_param_group(param_group)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the wrapped optimizer's step, then collect a snapshot if one is due.

        Args:
            *args: passed on, as is a closure.
            **kwargs: passed on.

        Raises:
            RuntimeError: averaged weights are in the model.
        """
        if self.swaps:
            self._refuse_if_averaged("step()")
        if kwargs and not args and self._only_makes_state(kwargs):
            self.window.allocate(self._tensors())
            return self.base.step(**kwargs)
        for pre_hook in self._optimizer_step_pre_hooks.values():
            changed = pre_hook(self, (self, *args), kwargs)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        "a step pre-hook must return None or a tuple of (args, kwargs), with the "
                        f"optimizer the first of args: got {changed!r}"
                    )
                (_, *args), kwargs = changed  # type: ignore[assignment]
        result = self.base.step(*args, **kwargs)
        if is_initialized():
            self._refuse_if_captured()
        if self.interval.advance():
            self.collect()
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, (self, *args), kwargs)
        return result

    # Global hooks fire in the wrapped optimizer's step; unmarked, torch would fire them here too.
    step.hooked = True  # type: ignore[attr-defined]

    def _only_makes_state(self, kwargs: dict[str, Any]) -> bool:
        """Whether this is torch.distributed.checkpoint's way of making an optimizer's state.

        It calls step(closure=None) with rates and gradients of exactly zero, which is no step of
        training. A warm-up may start at a rate of zero, but has gradients.
        """
        if kwargs != {"closure": None} or self.base.state:
            return False
        return all(
            float(group.get("lr", 0.0)) == 0.0
            and all(p.grad is None or not local(p.grad).any() for p in group["params"])
            for group in self.param_groups
        )

    def _refuse_if_captured(self) -> None:
        if is_current_stream_capturing():
            raise RuntimeError(
                "step() inside a CUDA graph would count and collect once, not at each replay: "
                "capture `base.step()`, and after each replay `if opt.interval.advance(): "
                "opt.collect()`"
            )

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    def _tensors(self) -> list[Tensor]:
        return self._parameters() + self.buffers

    @_outside_graphs
    @torch.no_grad()
    def collect(self) -> None:
        """Take a snapshot now, whatever the interval says; for `every="manual"`, once an epoch.

        Raises:
            RuntimeError: averaged weights are in the model.
        """
        self._refuse_if_averaged("collect()")
        self.window.collect(self._tensors())
        self.interval.newest = self.interval.step

    def _refuse_if_averaged(self, what: str) -> None:
        if self.swaps:
            raise RuntimeError(
                f"{what} while averaged weights are in the model: leave the `averaged()` block, or "
                "call train(), first"
            )

    def _filled(self, latest: int | None) -> list[Ring]:
        """The rings that hold snapshots, once `latest` is known to be in range."""
        held = self.held
        if held == 0:
            raise RuntimeError(
                f"the window is empty after {self.interval.step} steps with "
                f"every={self.interval.every!r}: train on or collect() first, or ask for the live "
                'weights with averaged(if_empty="live")'
            )
        whole = isinstance(latest, int) and not isinstance(latest, bool)
        if latest is not None and not (whole and 1 <= latest <= held):
            raise ValueError(f"latest must be from 1 to the {held} snapshots held: {latest!r}")
        return [ring for ring in self.window.rings if ring.held]

    @contextmanager
    def averaged(
        self, latest: int | None = None, *, if_empty: Literal["raise", "live"] = "raise"
    ) -> Iterator[None]:
        """Have the mean of the window in the parameters (and given buffers) within a block.

        The live weights come back bit for bit, also when the block raises; changes made to the
        weights inside are lost. Blocks nest. For BatchNorm, pass `buffers=model.buffers()` and call
        `torch.optim.swa_utils.update_bn(loader, model)` inside for exact statistics.

        Args:
            latest: average the latest so many snapshots, from 1 to those held; by default, all.
            if_empty: "live" leaves the live weights in place while nothing has been collected.

        Raises:
            RuntimeError: the window is empty.
            ValueError: more snapshots asked for than are held.
        """
        if if_empty == "live" and not self.held:
            yield
            return
        swap = self._swap_in(latest)
        try:
            yield
        finally:
            self._swap_out(swap)

    def eval(self) -> None:
        """Put the mean into the model until `train()`, as Transformers and Accelerate call it.

        Does nothing where averaged weights are in already. With an empty window it warns and leaves
        the live weights. A wrapped optimizer with an eval() of its own is told first.
        """
        if self.swaps:
            return
        if hasattr(self.base, "eval"):
            self.base.eval()
        if self.held:
            self._swap_in(None)
        else:
            warnings.warn("LAWA.eval(): the window is empty, so the weights are live", stacklevel=2)

    def train(self) -> None:
        """Put the live weights back, bit for bit; does nothing where they are in already."""
        if self.swaps:
            self._swap_out(self.swaps[0])
        if hasattr(self.base, "train"):
            self.base.train()

    @_outside_graphs
    @torch.no_grad()
    def _swap_in(self, latest: int | None) -> _Swap:
        rings = self._filled(latest)
        forget_gathered(self._tensors())
        swap: _Swap = [(ring.tensors, [local(t).clone() for t in ring.tensors]) for ring in rings]
        self.swaps.append(swap)
        try:
            for ring in rings:
                ring.write_mean(ring.tensors, latest)
        except BaseException:
            self._swap_out(swap)
            raise
        return swap

    @_outside_graphs
    @torch.no_grad()
    def _swap_out(self, swap: _Swap) -> None:
        depth = next((i for i, known in enumerate(self.swaps) if known is swap), None)
        if depth is None:  # train() was called inside the block
            return
        forget_gathered(self._tensors())
        for tensors, before in swap:
            torch._foreach_copy_([local(tensor) for tensor in tensors], before)
        del self.swaps[depth:]

    @torch.no_grad()
    def averaged_state_dict(
        self, model: nn.Module, latest: int | None = None, *, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """`model.state_dict()` with the mean in place of each tensor the window holds.

        Everything in it is a copy, tied weights too, so it can go to `safetensors.torch.save_file`
        or `torch.save` and training can go on. The model itself is not touched.

        Args:
            model: the model whose parameters are optimized.
            latest: as in `averaged`.
            dtype: type of the means; `torch.float32` keeps what bfloat16 parameters would round.

        Raises:
            RuntimeError: the window is empty.
            ValueError: more snapshots asked for than are held, or no tensor of the model is held.
        """
        means: dict[int, Tensor] = {}
        entries = model.state_dict(keep_vars=True)
        for ring in self._filled(latest):
            outs = [
                torch.empty_like(t, dtype=dtype if ring.averages else None) for t in ring.tensors
            ]
            ring.write_mean(outs, latest)
            means.update((id(t), out.detach()) for t, out in zip(ring.tensors, outs, strict=True))
        if not any(id(value) in means for value in entries.values()):
            raise ValueError("the window holds no tensor of this model: is it the one trained?")
        result: dict[str, Any] = {}
        for name, value in entries.items():
            mean = means.pop(id(value), None)
            if mean is None and isinstance(value, Tensor):
                first = next((n for n, v in entries.items() if v is value), name)
                source = result[first] if first in result else value.detach()
                mean = source.clone()
            result[name] = copy.deepcopy(value) if mean is None else mean
        return result

    def averaged_model(self, model: nn.Module, latest: int | None = None) -> nn.Module:
        """A separate copy of the model with the averaged weights; raises as `averaged` does."""
        weights = self.averaged_state_dict(model, latest)
        twin = copy.deepcopy(model)
        twin.load_state_dict(weights)
        return twin

    @torch.no_grad()
    def restart_from_average(self, latest: int | None = None, *, reset_state: bool = False) -> None:
        """Make the mean the live weights and train on from there (the paper's online mode).

        This does change the training. The window is kept.

        Args:
            latest: as in `averaged`.
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
        rings = self._filled(latest)
        forget_gathered(self._tensors())
        for ring in rings:
            ring.write_mean(ring.tensors, latest)
        if reset_state:
            self.base.state.clear()

    @_outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, with the window in each parameter's entry.

        As in torch, tensors are references: save or copy it before the next step. Taken while
        averaged weights are in the model, it carries the live ones too, and a LAWA that loads it
        gives them back on `train()`. After the first step the window is always in it, even where
        nothing has been collected, since torch.distributed.checkpoint loads into equal keys.

        Of the interval it carries the step, the step of the newest snapshot and `enabled`, which
        are states of a training; `every`, `span` and `start` are of the LAWA that loads it.

        Raises:
            RuntimeError: averaged weights are in the model and it is in parts.
        """
        if self.swaps and any(self.window.in_parts(tensor) for tensor in self._tensors()):
            raise RuntimeError(
                "state_dict() of a model or window in parts while averaged weights are in the "
                "model: its checkpoint could not give the live weights back, so call train(), or "
                "leave the `averaged()` block, on all ranks first (under Transformers' Trainer, "
                "which saves right after it evaluates, call it in a callback's on_evaluate)"
            )
        if self.interval.step:
            self.window.allocate(self._tensors())
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = dict(self.base.state_dict())
        entries = saved.entries_of(self.window, self.interval, averaged=bool(self.swaps))
        if self.swaps:
            for tensors, before in self.swaps[0]:
                for tensor, live in zip(tensors, before, strict=True):
                    entries[id(tensor)]["lawa_live"] = live
        if _has_torch_form(state_dict):
            state = dict(state_dict["state"])
            for index, parameter in self._numbered(state_dict["param_groups"]):
                if id(parameter) in entries:
                    state[index] = {**state.get(index, {}), **entries[id(parameter)]}
            state_dict["state"] = state
        else:
            state_dict["lawa_parameters"] = [entries.get(id(p), {}) for p in self._parameters()]
        if self.buffers:
            state_dict["lawa_buffers"] = [entries.get(id(buffer), {}) for buffer in self.buffers]
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def _numbered(self, groups: list[dict[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
        """Each parameter beside its number in the groups of a state dict."""
        for group, own in zip(groups, self.param_groups, strict=True):
            yield from zip(group["params"], own["params"], strict=True)

    @_outside_graphs
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the wrapped optimizer's own state dict.

        The latter leaves an empty window, so a project can adopt LAWA in mid-training. Snapshots
        are copied, to the parameters' device and the window's dtype. Collecting is then switched on
        or off as it was when saved, and left as it is by a state dict that does not say.

        Args:
            state_dict: as returned by `state_dict`, also after `torch.load(weights_only=True)`.

        Raises:
            ValueError: another k, other shapes or other group sizes; nothing has been changed.
            RuntimeError: averaged weights are in the model.
        """
        self._refuse_if_averaged("load_state_dict()")
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        lists = {name: state_dict.pop(f"lawa_{name}s", []) for name in ("parameter", "buffer")}
        own = {"parameter": self._parameters(), "buffer": self.buffers}
        named = []
        if _has_torch_form(state_dict):
            sizes = [len(group["params"]) for group in state_dict["param_groups"]]
            own_sizes = [len(group["params"]) for group in self.param_groups]
            if sizes != own_sizes:
                raise ValueError(
                    f"this state dict has parameter groups of {sizes} parameters and this "
                    f"optimizer of {own_sizes}: it is of another model, or the groups were made "
                    "otherwise"
                )
            plain, windows = _divided(state_dict["state"])
            for index, parameter in self._numbered(state_dict["param_groups"]):
                named.append((f"parameter {index}", parameter, windows.get(index, {})))
            state_dict["state"] = plain
        for name, entries in lists.items():
            if len(entries) not in (0, len(own[name])):
                raise ValueError(
                    f"this state dict holds {len(entries)} {name}s and this LAWA {len(own[name])}"
                )
            for index, (tensor, entry) in enumerate(zip(own[name], entries, strict=False)):
                named.append((f"{name} {index}", tensor, entry))
        saved.check(named, self.window)
        self.base.load_state_dict(state_dict)
        held = [(tensor, entry) for _, tensor, entry in named]
        saved.fill(self.window, self.interval, held)
        live = [(t, entry["lawa_live"]) for t, entry in held if "lawa_live" in entry]
        if live:
            tensors, weights = map(list, zip(*live, strict=True))
            self.swaps.append([(tensors, saved.local_copies(weights, tensors))])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


_STATE = ("base", "window", "interval", "buffers", "swaps")


def _has_torch_form(state_dict: dict[str, Any]) -> bool:
    """Whether a state dict is as torch makes it; a wrapper of another package has its own form."""
    return "state" in state_dict and "param_groups" in state_dict


def _divided(state: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, dict[str, Any]]]:
    """A saved state without the window, and the window's part of it."""
    plain: dict[Any, Any] = {}
    windows: dict[Any, dict[str, Any]] = {}
    for index, entry in state.items():
        mine = {}
        if isinstance(entry, dict):
            mine = {name: entry[name] for name in entry if str(name).startswith(saved.PREFIX)}
        windows[index] = mine
        if not mine:
            plain[index] = entry
        elif len(mine) < len(entry):
            plain[index] = {name: entry[name] for name in entry if name not in mine}
    return plain, windows
