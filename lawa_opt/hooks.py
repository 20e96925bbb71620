"""torch's hooks, called as if wrapper and wrapped optimizer were one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.cuda import is_current_stream_capturing
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

from lawa_opt.several import Several, parts_of

Hook = Callable[..., Any]

# Where torch keeps the hooks of an optimizer.
HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def hooked_step(
    wrapper: Optimizer, base: Optimizer, args: Any, kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], Any, dict[str, Any], Callable[[], None]]:
    """Call the hooks before a step, and return how it goes on.

    Args:
        wrapper: whose hooks are called, with the global ones; all are given this optimizer.
        base: the wrapped optimizer, which calls its own.
        args: of the step.
        kwargs: of the step.

    Returns:
        The step to take, its arguments as the hooks want them, and what calls the hooks after it.

    Raises:
        RuntimeError: a hook returned something else than None or (args, kwargs).
    """
    any_global = bool(global_pre_hooks or global_post_hooks)
    is_ours = any_global and not _fires_global_hooks(base)
    before = (global_pre_hooks if is_ours else {}).values()
    hooks = chain(before, wrapper._optimizer_step_pre_hooks.values())
    args, kwargs = _call_pre_hooks(hooks, wrapper, args, kwargs)

    def call_post_hooks() -> None:
        behind = (global_post_hooks if is_ours else {}).values()
        for hook in chain(wrapper._optimizer_step_post_hooks.values(), behind):
            hook(wrapper, (wrapper, *args), kwargs)

    step = partial(_step_without_global_hooks, base) if is_ours else base.step
    return step, args, kwargs, call_post_hooks


def _fires_global_hooks(optimizer: Optimizer) -> bool:
    """Return whether only the optimizer's own `step` can be called, which fires global hooks.

    A scheduler that was given the wrapped optimizer has put a `step` of its own into it.
    """
    return any(
        hasattr(type(each).step, "__wrapped__") and "step" in vars(each)
        for each in parts_of(optimizer)
    )


def _step_without_global_hooks(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
    """Take an optimizer's step with its own hooks alone, and return what the step returns."""
    if isinstance(optimizer, Several):
        return optimizer.in_turn(_step_without_global_hooks, *args, **kwargs)
    step = getattr(type(optimizer).step, "__wrapped__", None)
    if step is None or not getattr(type(optimizer).step, "hooked", False):
        return optimizer.step(*args, **kwargs)
    with torch.autograd.profiler.record_function(f"Optimizer.step#{type(optimizer).__name__}.step"):
        own = optimizer._optimizer_step_pre_hooks.values()
        args, kwargs = _call_pre_hooks(own, optimizer, args, kwargs)
        result = step(optimizer, *args, **kwargs)
        for hook in optimizer._optimizer_step_post_hooks.values():
            hook(optimizer, (optimizer, *args), kwargs)
    return result


def _call_pre_hooks(
    hooks: Iterable[Hook], optimizer: Optimizer, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a step as the last of these hooks wants them.

    Raises:
        RuntimeError: a hook returned something else than None or (args, kwargs).
    """
    for hook in hooks:
        changed = hook(optimizer, (optimizer, *args), kwargs)
        if changed is not None:
            if not (isinstance(changed, tuple) and len(changed) == 2):
                raise RuntimeError(
                    "a step pre-hook must return None or a tuple of (args, kwargs), with the "
                    f"optimizer the first of args: got {changed!r}"
                )
            (_, *args), kwargs = changed
    return args, kwargs


def changed_by(
    hooks: Iterable[Hook], optimizer: Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """Return a state dict as the last of these hooks wants it."""
    for hook in hooks:
        changed = hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    return state_dict


def refuse_captured_step() -> None:
    """Refuse a step inside a CUDA graph, which would be replayed without what Python does.

    Raises:
        RuntimeError: one is being captured.
    """
    if is_current_stream_capturing():
        raise RuntimeError(
            "step() inside a CUDA graph would count and collect once, not at each replay: "
            "capture `base.step()`, and after each replay `if opt.schedule.step(): "
            "opt.collect()`"
        )
