"""Put the package `schedulefree` in the place of an optimizer: the only file that imports it."""

from __future__ import annotations

import sys
from typing import Any

from schedulefree import AdamWScheduleFree, ScheduleFreeWrapper, SGDScheduleFree
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


def schedule_free(base: Optimizer, beta: float) -> Any:
    """Return the package's optimizer in the place of this one."""
    options = [
        name for name in ("amsgrad", "maximize") if any(g.get(name) for g in base.param_groups)
    ]
    decays = any(group.get("weight_decay") for group in base.param_groups)
    if options or type(base) not in (AdamW, Adam, SGD) or (type(base) is Adam and decays):
        return _Wrapped(base, beta)
    names = ("params", "lr", "weight_decay")
    if type(base) is SGD:
        return SGDScheduleFree(
            [{name: group[name] for name in names} for group in base.param_groups], momentum=beta
        )
    return AdamWScheduleFree(
        [
            {
                **{name: group[name] for name in (*names, "eps")},
                "betas": (beta, group["betas"][1]),
            }
            for group in base.param_groups
        ]
    )


class _Wrapped(ScheduleFreeWrapper, Optimizer):  # type: ignore[misc]
    """The package's wrapper, which torch's schedulers take for an optimizer.

    z is kept beside the base optimizer's state, not in it: most optimizers make their state at the
    first step if there is none, and would find z there and go without.
    """

    def __init__(self, base: Optimizer, beta: float) -> None:
        self._z: dict[Tensor, dict[str, Tensor]] = {
            parameter: {} for group in base.param_groups for parameter in group["params"]
        }
        ScheduleFreeWrapper.__init__(self, base, momentum=beta)
        for group in base.param_groups:
            # The package divides by it, and a warm-up begins with a rate, and so a sum, of zero.
            group["weight_sum"] = sys.float_info.min

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the fast weights z of each parameter, once it was stepped."""
        return self._z

    @staticmethod
    def swap(x: Tensor, y: Tensor) -> None:
        """Exchange two tensors, of any memory format."""
        kept = x.clone()
        x.copy_(y)
        y.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's, and z by the number of the parameter."""
        z = [entry.get("z") for entry in self._z.values()]
        return {"base": self.base.state_dict(), "z": z}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.base.load_state_dict(state_dict["base"])
        for (parameter, entry), z in zip(self._z.items(), state_dict["z"], strict=True):
            if z is not None:
                entry["z"] = z.clone().to(parameter)
