"""Swaps under way: one within another, and those of several LAWAs over the same tensors."""

from __future__ import annotations

import itertools
import weakref

from torch import Tensor

from lawa_opt.messages import warn
from lawa_opt.swap import Swap, forget_derived

# Of all LAWAs, in the order in which they began. Two may hold the same tensor, such as a buffer of
# a model with two optimizers, and may end in any order.
_under_way: list[weakref.ref[Swap]] = []
_moments = itertools.count(1)


def _others_of(swap: Swap) -> tuple[list[Swap], list[Swap]]:
    """Return the swaps under way that began before this one, and those after it."""
    known = [other for ref in _under_way if (other := ref()) is not None]
    found = [other for other in known if other is swap or not other.ended]
    _under_way[:] = map(weakref.ref, found)
    place = next((i for i, other in enumerate(found) if other is swap), len(found))
    return found[:place], found[place + 1 :]


def live_values(swap: Swap) -> list[Tensor]:
    """Return the live values of a swap's tensors: those from before the first swap of each."""
    before, _ = _others_of(swap)
    for each in (swap, *before):
        each.own()  # what is handed out is no window's
    values = list(swap.live)
    for other in reversed(before):
        for number, tensor in enumerate(swap.tensors):
            if id(tensor) in other.numbers:
                values[number] = other.live[other.numbers[id(tensor)]]
    return values


class Swaps(list[Swap]):
    """The swaps of one LAWA that are under way, those of inner blocks after those of outer ones.

    Attributes:
        began: when the latest outermost one did, counted over all LAWAs of this process.
        ended: when the latest outermost one did, by the same count.
    """

    began = 0
    ended = 0

    def refuse_any(self, what: str) -> None:
        """Refuse what is not for averaged weights.

        Raises:
            RuntimeError: they are in the model.
        """
        if self:
            raise RuntimeError(
                f"{what} while averaged weights are in the model: leave the `averaged()` block, or "
                "call train(), first"
            )

    def enter(self, swap: Swap) -> None:
        """Have a swap under way; the average is written after this."""
        if self:
            self[-1].note_changes()
        else:
            self.began = next(_moments)
        swap.borrow()
        self.append(swap)
        _under_way.append(weakref.ref(swap))
        forget_derived(swap.tensors)

    def leave(self, swap: Swap, *, keep_changed: bool = False) -> None:
        """End a swap and those within it, unless that was done; after an interrupt, once more.

        Args:
            swap: gives its values from before back. Where the swap of another LAWA has begun
                meanwhile over the same tensor, it gives them to that.
            keep_changed: leave what others have written to the tensors meanwhile.

        Raises:
            RuntimeError: a tensor cannot be written to; the swap has ended all the same.
        """
        depth = next((i for i, known in enumerate(self) if known is swap), None)
        if depth is None:  # train() was called inside the block
            return
        self[-1].note_changes()
        changed = {id(inner.tensors[i]) for inner in self[depth:] for i in inner.changed}
        swap.changed = {i for i, tensor in enumerate(swap.tensors) if id(tensor) in changed}
        own = set(map(id, self))
        later = [other for other in _others_of(swap)[1] if id(other) not in own]
        if later:
            swap.own()
        numbers = []
        for number, tensor in enumerate(swap.tensors):
            heir = next((other for other in later if id(tensor) in other.numbers), None)
            if heir is not None:
                heir.live[heir.numbers[id(tensor)]] = swap.live[number]
            elif not (keep_changed and number in swap.changed):
                numbers.append(number)
        lost = swap.is_lost()
        forget_derived(swap.tensors)
        failed: RuntimeError | None = None
        try:
            swap.restore(numbers)
        except RuntimeError as error:
            failed = error
        if depth:
            self[depth - 1].stamp()
        for inner in self[depth:]:
            inner.ended = True
            inner.give_back()
        del self[depth:]
        if not self:
            self.ended = next(_moments)
        if failed:
            raise failed
        if lost:
            warn(
                "the window was written to in place while it held the live weights, as by a load "
                "into a state dict of it: its newest snapshot, as it is now, is in their place"
            )
