"""torch's step hooks, called as if wrapper and wrapped optimizer were one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


def call_pre_hooks(
    hooks: Iterable[Callable[..., Any]], optimizer: Optimizer, args: Any, kwargs: dict[str, Any]
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


def fires_global_hooks(optimizer: Optimizer) -> bool:
    """Return whether only the optimizer's own `step` can be called, which fires global hooks.

    A scheduler that was given the wrapped optimizer has put a `step` of its own into it.
    """
    return hasattr(type(optimizer).step, "__wrapped__") and "step" in vars(optimizer)


def step_without_global_hooks(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
    """Take an optimizer's step with its own hooks alone, and return what the step returns."""
    step = getattr(type(optimizer).step, "__wrapped__", None)
    if step is None or not getattr(type(optimizer).step, "hooked", False):
        return optimizer.step(*args, **kwargs)
    with torch.autograd.profiler.record_function(f"Optimizer.step#{type(optimizer).__name__}.step"):
        own = optimizer._optimizer_step_pre_hooks.values()
        args, kwargs = call_pre_hooks(own, optimizer, args, kwargs)
        result = step(optimizer, *args, **kwargs)
        for hook in optimizer._optimizer_step_post_hooks.values():
            hook(optimizer, (optimizer, *args), kwargs)
    return result
