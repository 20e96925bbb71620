"""An average in the place of the live weights, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from lawa_opt.distributed import local, reshard_fsdp_modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lawa_opt.buffers import Buffers


def version_of(tensor: Tensor) -> tuple[int, ...]:
    """Return a number that grows whenever the tensor is written to in place."""
    parts = {id(part): part for part in (tensor, local(tensor))}.values()
    return tuple(0 if part.is_inference() else part._version for part in parts)


def forget_derived(tensors: Sequence[Tensor]) -> None:
    """Have what was computed from the weights computed again, now that they have changed.

    FSDP keeps gathered weights, autocast casts of them, and `parametrize.cached()` what
    parametrizations made. Without this, the average would be evaluated with what is left of the
    live weights, or the other way round.
    """
    reshard_fsdp_modules(tensors)
    torch.clear_autocast_cache()
    if parametrize._cache_enabled:
        parametrize._cache.clear()


class Swap:
    """The live values of tensors that are to hold an average for a while.

    Args:
        tensors: parameters and buffers.
        buffers: which of them are buffers, and of which modules.
        live: their live values, if they are not those that the tensors hold now. Then nothing is
            known of what others have written.
    """

    def __init__(
        self, tensors: Sequence[Tensor], buffers: Buffers, live: list[Tensor] | None = None
    ) -> None:
        self.tensors = list(tensors)
        self.live = [local(t).detach().clone() for t in tensors] if live is None else live
        self.buffers = buffers
        self.buffer_ids = {id(buffer) for buffer in buffers.now()}
        self.places = {id(tensor): place for place, tensor in buffers.places().items()}
        self.versions: list[tuple[int, ...]] | None = None
        self.changed: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A copied tensor counts anew, and ids are of one process.
        return {"tensors": self.tensors, "live": self.live, "buffers": self.buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tensors"], state["buffers"], state["live"])  # type: ignore[misc]

    def stamp(self) -> None:
        """Remember that what the tensors hold now was written by us."""
        self.versions = [version_of(tensor) for tensor in self.tensors]

    def note_changes(self) -> None:
        """Remember which tensors somebody else has written to since the stamp."""
        if self.versions is not None:
            for index, (tensor, version) in enumerate(
                zip(self.tensors, self.versions, strict=True)
            ):
                if version_of(tensor) != version:
                    self.changed.add(index)
            # What is written from here on, until the next stamp, is written by us.
            self.versions = None

    @property
    def changed_parameters(self) -> int:
        """How many parameters somebody else has written to, as far as noted."""
        return sum(id(self.tensors[index]) not in self.buffer_ids for index in self.changed)

    def restore(self, *, keep_changed: bool = False) -> None:
        """Write the live values back; once or again.

        Args:
            keep_changed: leave what others have written where it is.
        """
        kept = self.changed if keep_changed else set()
        indices = [index for index in range(len(self.tensors)) if index not in kept]
        if not indices:
            return
        targets = [local(self._target(self.tensors[index])) for index in indices]
        torch._foreach_copy_(targets, [self.live[index] for index in indices])

    def _target(self, tensor: Tensor) -> Tensor:
        """Return the tensor, or the buffer that has replaced it meanwhile."""
        place = self.places.get(id(tensor))
        if place is None:
            return tensor
        now = self.buffers.places().get(place)
        return tensor if now is None or now.shape != tensor.shape else now


class Swaps(list[Swap]):
    """The swaps under way, those of inner blocks after those of outer ones."""

    def enter(self, swap: Swap) -> None:
        """Have a swap under way; the average is written after this."""
        if self:
            self[-1].note_changes()
        self.append(swap)
        forget_derived(swap.tensors)

    def leave(self, swap: Swap, *, keep_changed: bool = False) -> None:
        """End a swap and those within it, unless that was done; after an interrupt, once more.

        Args:
            swap: gives its live values back.
            keep_changed: where others have written to parameters meanwhile, leave what they wrote.
        """
        depth = next((i for i, known in enumerate(self) if known is swap), None)
        if depth is None:  # train() was called inside the block
            return
        self[-1].note_changes()
        changed = {id(inner.tensors[i]) for inner in self[depth:] for i in inner.changed}
        swap.changed = {i for i, tensor in enumerate(swap.tensors) if id(tensor) in changed}
        forget_derived(swap.tensors)
        swap.restore(keep_changed=keep_changed and swap.changed_parameters > 0)
        if depth:
            self[depth - 1].stamp()
        del self[depth:]
