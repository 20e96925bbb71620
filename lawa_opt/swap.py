"""One swap: an average in the place of the live weights, and the same bits back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from lawa_opt.buffers import Buffers
from lawa_opt.ring import UNIFORM, Ring
from lawa_opt.sharding import local, reshard_fsdp_modules
from lawa_opt.storage import Storage
from lawa_opt.weights_by_step import Weigh


def version_of(tensor: Tensor) -> tuple[int, ...]:
    """Return numbers that grow whenever the tensor is written to in place."""
    own = local(tensor)
    parts = (tensor,) if own is tensor else (tensor, own)
    return tuple([0 if part.is_inference() else part._version for part in parts])


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of what this process holds of tensors, made by few kernels on a GPU."""
    shards = [local(tensor).detach() for tensor in tensors]
    copies = [torch.empty_like(shard) for shard in shards]
    if copies:
        torch._foreach_copy_(copies, shards)
    return copies


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
    """The values of tensors from before an average was put in their place.

    Args:
        tensors: parameters and buffers.
        buffers: which of them are buffers, and of which modules.
        live: their values, if they are not those that the tensors hold now.
        unaveraged: how many of the tensors, the last ones, are buffers without an average.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        buffers: Buffers,
        live: list[Tensor] | None = None,
        unaveraged: int = 0,
    ) -> None:
        self.tensors = list(tensors)
        self.unaveraged = unaveraged
        self.live = copies_of(tensors) if live is None else live
        self.buffers = buffers
        self._prepare()
        self.places = {id(tensor): place for place, tensor in buffers.places().items()}

    @classmethod
    def of(cls, rings: Sequence[Ring], others: Sequence[Tensor], buffers: Buffers) -> Swap:
        """Return a swap of the tensors of rings, and of others that have no average.

        Live values that are, bit for bit, the newest snapshot are not copied: a window that is
        collected to, or saved, meanwhile has them copied first.
        """
        live: list[Tensor] = []
        lent: list[int] = []
        lenders: list[tuple[Storage, int]] = []
        for ring in rings:
            newest = ring.snapshot_of_now()
            if newest is not None:
                lent += range(len(live), len(live) + len(newest))
                lenders.append((ring.storage, ring.storage.rows._version))
            live += copies_of(ring.tensors) if newest is None else newest
        tensors = [tensor for ring in rings for tensor in ring.tensors]
        swap = cls([*tensors, *others], buffers, live + copies_of(others), len(others))
        swap.lent, swap.lenders = lent, lenders
        return swap

    def _prepare(self) -> None:
        self.numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}
        self.places = dict[int, tuple[int, str]]()
        self.rings: list[Ring] = []
        self.latest: int | None = None
        self.weigh = UNIFORM
        self.versions: list[tuple[int, ...]] | None = None
        self.changed: set[int] = set()
        self.has_own_statistics = False
        self.ended = False
        self.lent: list[int] = []
        self.lenders: list[tuple[Storage, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        # A copied tensor counts its versions anew, and ids are of one process.
        kept = ("tensors", "buffers", "unaveraged")
        return {**{name: self.__dict__[name] for name in kept}, "live": self._copied()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules that hold this may not be whole yet, so that no buffer is looked up.
        self.__dict__.update(state)
        self._prepare()

    def borrow(self) -> None:
        """Have the lent values copied before the window that holds them is written to."""
        for storage, _ in self.lenders:
            storage.borrowers.append(self.own)

    def own(self) -> None:
        """Copy the live values that a window holds alone."""
        self.live = self._copied()
        self.give_back()

    def is_lost(self) -> bool:
        """Return whether a window that lends live values was written to, past all that we know."""
        return any(storage.rows._version != version for storage, version in self.lenders)

    def give_back(self) -> None:
        """Need no window any longer."""
        for storage, _ in self.lenders:
            storage.borrowers[:] = [own for own in storage.borrowers if own != self.own]
        self.lent, self.lenders = [], []

    def _copied(self) -> list[Tensor]:
        copies = dict(zip(self.lent, copies_of([self.live[i] for i in self.lent]), strict=True))
        return [copies.get(number, value) for number, value in enumerate(self.live)]

    def write(self, rings: list[Ring], latest: int | None, weigh: Weigh) -> None:
        """Write the mean of the latest snapshots into the tensors, which are those of the rings."""
        for ring in rings:
            ring.write_mean(ring.tensors, latest, weigh)
        self.rings, self.latest, self.weigh = rings, latest, weigh
        self.stamp()

    def stamp(self) -> None:
        """Remember that what the tensors hold now was written by us."""
        self.versions = [version_of(tensor) for tensor in self.tensors]

    def note_changes(self) -> None:
        """Remember the tensors that somebody else has written other values to.

        What was written and put back, as by an EMA in between, is no change. Buffers count where
        parameters have changed too: alone, their statistics were computed anew.
        """
        if self.versions is None:
            return
        written, statistics = self._written()
        parameters = self._other_values(written - statistics)
        self.changed |= parameters | (statistics if parameters else set())
        # What is written from here on, until the next stamp, is written by us.
        self.versions = None

    def rewritten_buffers(self) -> bool:
        """Return whether the buffers have other values than the average's."""
        return self.has_own_statistics or bool(self._written()[1])

    def _written(self) -> tuple[set[int], set[int]]:
        """Return which tensors were written to since the stamp, and which of those are buffers."""
        pairs = zip(self.tensors, self.versions or (), strict=False)
        written = {i for i, (tensor, version) in enumerate(pairs) if version_of(tensor) != version}
        averaged = len(self.tensors) - self.unaveraged
        buffers = {id(buffer) for buffer in (*self.buffers.now(), *self.tensors[averaged:])}
        return written, {i for i in written if id(self.tensors[i]) in buffers}

    def _other_values(self, written: set[int]) -> set[int]:
        """Return which of these tensors hold something else than the mean."""
        # Making the mean anew of a window in parts would be a collective, of this rank alone.
        if any(ring.mesh is not None for ring in self.rings):
            return written
        for ring in self.rings if written else ():
            outs = [torch.empty_like(tensor) for tensor in ring.tensors]
            ring.write_mean(outs, self.latest, self.weigh)
            for tensor, out in zip(ring.tensors, outs, strict=True):
                if _same_bits(local(tensor), local(out)):
                    written.discard(self.numbers[id(tensor)])
        return written

    def restore(self, numbers: Sequence[int]) -> None:
        """Write the values from before into some of the tensors, once or again.

        Raises:
            RuntimeError: one cannot be written to; all others have been.
        """
        replaced = self.buffers.places() if self.places else {}
        targets = [local(self._target(self.tensors[number], replaced)) for number in numbers]
        values = [self.live[number] for number in numbers]
        if not targets:
            return
        try:
            torch._foreach_copy_(targets, values)
        except RuntimeError:
            failed = [pair for pair in zip(targets, values, strict=True) if not _copied(*pair)]
            if failed:
                raise

    def _target(self, tensor: Tensor, now: dict[tuple[int, str], Tensor]) -> Tensor:
        """Return the tensor, or the buffer of the same shape that has replaced it meanwhile."""
        place = self.places.get(id(tensor))
        found = tensor if place is None else now.get(place, tensor)
        return found if found.shape == tensor.shape else tensor


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.is_complex() or not one.is_floating_point():
        return torch.equal(one, other)
    # Not a number is the same as itself here.
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _copied(target: Tensor, value: Tensor) -> bool:
    try:
        target.copy_(value)
    except RuntimeError:
        return False
    return True
