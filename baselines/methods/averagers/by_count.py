"""An averaged model of whose tensors some may begin anew: each has a count of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from baselines.methods.averagers.tensors import load_tensors, tensors_of

# The weight of the newest, by the number of updates before it, from 1.
WeightAt = Callable[[int], float]


class AverageByCount(AveragedModel):
    """torch's averaged model, in which parameters and buffers can begin anew.

    Args:
        model: that is averaged.
        weight_at: of the newest weights.
        exponential: for an average that buffers are part of too, and that is always by `weight_at`;
            else it is torch's own, of equal weights, until something begins anew.
    """

    def __init__(self, model: nn.Module, weight_at: WeightAt, *, exponential: bool) -> None:
        super().__init__(model, use_buffers=exponential)
        self.begun: dict[str, int] = {}
        # By address: torch gives the function other tensors of the same numbers.
        self._since: dict[int, int] = {}
        self._move = partial(move, weight_at, self._since)
        if exponential:
            self.multi_avg_fn = self._move

    def begin_anew(self, names: Sequence[str]) -> None:
        """Forget the averages of some tensors, by their names in the model."""
        if count := int(self.n_averaged):
            self._set_begun({**self.begun, **dict.fromkeys(names, count)})

    def _set_begun(self, begun: Mapping[str, int]) -> None:
        own = tensors_of(self.module)
        self.begun = dict(begun)
        self._since.update({own[name].data_ptr(): count for name, count in begun.items()})
        if begun:
            self.multi_avg_fn = self._move

    @torch.no_grad()
    def take_live(self, model: nn.Module) -> None:
        """Take the weights of the model for what has begun anew and has no average yet."""
        if new := [name for name, count in self.begun.items() if count == int(self.n_averaged)]:
            own, live = tensors_of(self.module), tensors_of(model)
            for name in new:
                own[name].copy_(live[name])

    def saved(self) -> dict[str, Any]:
        """Return all it holds."""
        return {"average": tensors_of(self), "begun": self.begun}

    def load_saved(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises ValueError if it is of another model."""
        load_tensors(self, state["average"])
        self._set_begun(state["begun"])


@torch.no_grad()
def move(
    weight_at: WeightAt,
    begun: Mapping[int, int],
    averaged: tuple[Tensor, ...] | list[Tensor],
    current: tuple[Tensor, ...] | list[Tensor],
    updates: Tensor | int,
) -> None:
    """Move averages towards the current weights, each by the number of its own updates before.

    Args:
        weight_at: of the current weights.
        begun: the updates before the first of some tensors, by their addresses; 0 for all others.
        averaged: of one dtype and device, changed in place.
        current: in the same order.
        updates: of the whole so far.
    """
    alike: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    if begun:
        for own, live in zip(averaged, current, strict=True):
            count = int(updates) - begun.get(own.data_ptr(), 0)
            for part, tensor in zip(alike.setdefault(count, ([], [])), (own, live), strict=True):
                part.append(tensor)
    else:
        alike[int(updates)] = list(averaged), list(current)
    for count, (owns, lives) in alike.items():
        if count and owns[0].is_floating_point():
            torch._foreach_lerp_(owns, lives, weight_at(count))
        else:
            torch._foreach_copy_(owns, lives)
