"""An optimizer in front of another: of the same groups and state, with hooks of its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lawa_opt.hooks import HOOKS
from lawa_opt.two_steps import two_steps_of


def forwarded(part: str, name: str) -> Any:
    """Return a property that reads and sets an attribute of the part of that name."""

    def read(wrapper: Any) -> Any:
        return getattr(getattr(wrapper, part), name)

    def write(wrapper: Any, value: Any) -> None:
        setattr(getattr(wrapper, part), name, value)

    return property(read, write)


class Forwarding(Optimizer):
    """An optimizer that shows what the one inside has, as that is at each access.

    Args:
        parts: its attributes by name, `base` among them. Proxies of frameworks copy __dict__ and
            must still see later changes, so none of these names is ever bound again: what changes,
            changes inside the objects.
    """

    base: Optimizer
    """The wrapped optimizer."""

    def __init__(self, **parts: Any) -> None:
        # Optimizer.__init__ is not called: it would make param_groups and state of its own.
        self.__setstate__(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dict__["_parts"]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        hooks: dict[str, Any] = {name: OrderedDict() for name in HOOKS}
        self.__dict__.update(state, _parts=tuple(state), **hooks)

    param_groups: list[dict[str, Any]] = forwarded("base", "param_groups")
    """The wrapped optimizer's parameter groups."""
    state: Any = forwarded("base", "state")
    """The wrapped optimizer's state by parameter; the window is not in it."""
    defaults: dict[str, Any] = forwarded("base", "defaults")
    """The wrapped optimizer's defaults."""
    if not TYPE_CHECKING:  # or every attribute would be one
        __getattr__ = two_steps_of  # SAM's `first_step` and `second_step`

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Reset the gradients, as the wrapped optimizer does: arguments are passed on."""
        self.base.zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its parameters are collected from now on."""
        self.base.add_param_group(param_group)
