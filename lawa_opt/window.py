"""The k latest snapshots of a set of tensors, and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

# The running mean of one tile stays in a core's cache, so a read of k snapshots moves k + 1 times
# the parameters' bytes through memory, not three times that. A GPU wants few, large kernels.
TILE_ELEMENTS = {"cpu": 1 << 16}
TILE_ELEMENTS_ELSEWHERE = 1 << 22

# Slots start at multiples of this many elements, or CUDA's foreach kernels fall back to scalars.
ALIGNMENT = 16


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lives in this process: a DTensor's shard, else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Ring:
    """k slots for some tensors of one dtype and device that are always collected together.

    One flat buffer a slot holds all the tensors, each as a view of its own shape and strides: many
    small tensors are then averaged by a few large operations.
    """

    def __init__(self, tensors: Sequence[Tensor], k: int, dtype: torch.dtype | None) -> None:
        self.tensors = list(tensors)
        self.k = k
        self.held = 0
        self.next = 0
        locals_ = [local(tensor) for tensor in self.tensors]
        self.sharded = any(part is not whole for part, whole in zip(locals_, tensors, strict=True))
        self.averages = locals_[0].is_floating_point() or locals_[0].is_complex()
        self._lay_out(locals_)
        slot_dtype = dtype if dtype is not None and self.averages else locals_[0].dtype
        self.flats = [
            torch.zeros(self.elements, dtype=slot_dtype, device=locals_[0].device) for _ in range(k)
        ]
        self._make_views()

    def __getstate__(self) -> dict[str, Any]:
        # Plain pickle does not keep views aliased to their buffer.
        return {key: value for key, value in self.__dict__.items() if key != "slots"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()

    def _lay_out(self, tensors: Sequence[Tensor]) -> None:
        """Place the tensors in a flat buffer, and cut it into tiles of small tensors or of parts.

        A tile is (begin, end, pieces): a stretch of the flat buffer and the tensors in it, each
        piece (index of the tensor, None) or, for a part, (index, (first, last element + 1)).
        """
        limit = TILE_ELEMENTS.get(tensors[0].device.type, TILE_ELEMENTS_ELSEWHERE)
        self.layouts: list[tuple[torch.Size, tuple[int, ...], int]] = []
        self.tiles: list[tuple[int, int, list[tuple[int, tuple[int, int] | None]]]] = []
        self.elements = 0
        begin = 0
        pieces: list[tuple[int, tuple[int, int] | None]] = []
        for index, tensor in enumerate(tensors):
            offset, count = self.elements, tensor.numel()
            # An empty_like of any tensor fills its memory without gaps, in the tensor's own order.
            strides = torch.empty_like(tensor, device="meta").stride()
            self.layouts.append((tensor.shape, strides, offset))
            self.elements = offset + -(-count // ALIGNMENT) * ALIGNMENT
            if pieces and self.elements - begin > limit:
                self.tiles.append((begin, offset, pieces))
                begin, pieces = offset, []
            if count > limit:
                for low in range(0, count, limit):
                    high = min(low + limit, count)
                    self.tiles.append((offset + low, offset + high, [(index, (low, high))]))
                begin = self.elements
            elif count:
                pieces.append((index, None))
        if pieces:
            self.tiles.append((begin, self.elements, pieces))

    def _make_views(self) -> None:
        self.slots = [
            [flat.as_strided(shape, strides, at) for shape, strides, at in self.layouts]
            for flat in self.flats
        ]

    def collect(self) -> None:
        """Copy the tensors over the oldest slot."""
        sources = [local(tensor) for tensor in self.tensors] if self.sharded else self.tensors
        torch._foreach_copy_(self.slots[self.next], sources)
        self.next = (self.next + 1) % self.k
        self.held = min(self.held + 1, self.k)

    def order(self, latest: int | None = None) -> list[int]:
        """Indices of the latest slots in use, oldest first."""
        count = self.held if latest is None else min(latest, self.held)
        return [(self.next - count + i) % self.k for i in range(count)]

    def write_mean(self, outs: Sequence[Tensor], latest: int | None = None) -> None:
        """Write the mean of the latest slots into `outs`, which have the shapes of the tensors.

        The mean runs in float32 or wider, oldest snapshot first, as m + (x - m) / i: snapshots
        that are all the same, such as a frozen parameter's, come out bit for bit. Tensors without
        a mean (integers) take their newest snapshot.
        """
        order = self.order(latest)
        outs = [local(out) for out in outs]
        laid_out = [
            out if out.stride() == strides else out.new_empty_strided(shape, strides)
            for out, (shape, strides, _) in zip(outs, self.layouts, strict=True)
        ]
        if not self.averages:
            torch._foreach_copy_(outs, self.slots[order[-1]])
            return
        oldest, *newer = (self.flats[index] for index in order)
        wide = torch.promote_types(oldest.dtype, torch.float32)
        size = max((end - begin for begin, end, _ in self.tiles), default=0)
        scratch = oldest.new_empty(size, dtype=wide)
        widened = None if wide == oldest.dtype else torch.empty_like(scratch)
        for begin, end, pieces in self.tiles:
            mean = scratch[: end - begin].copy_(oldest[begin:end])
            for i, flat in enumerate(newer, start=2):
                snapshot = flat[begin:end]
                if widened is not None:
                    snapshot = widened[: end - begin].copy_(snapshot)
                mean.lerp_(snapshot, 1 / i)
            targets, sources = [], []
            for index, part in pieces:
                out = laid_out[index]
                shape, strides, offset = self.layouts[index]
                if part is None:
                    targets.append(out)
                    sources.append(mean.as_strided(shape, strides, offset - begin))
                else:
                    low, high = part
                    targets.append(out.as_strided((high - low,), (1,), out.storage_offset() + low))
                    sources.append(mean)
            torch._foreach_copy_(targets, sources)
        for out, same in zip(outs, laid_out, strict=True):
            if out is not same:
                out.copy_(same)


class Window:
    """The k latest snapshots of tensors, taken with `collect`.

    Memory: k times the bytes of the tensors (in `dtype`, if given), allocated at the first collect.
    Tensors first collected later, or only now and then, keep a ring position of their own.

    Args:
        k: snapshots held.
        dtype: the floating-point type of the slots; by default, each tensor's own.
    """

    def __init__(self, k: int, dtype: torch.dtype | None = None) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of snapshots from 1: {k!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"the window's dtype must be a floating-point type: {dtype}")
        self.k = k
        self.dtype = dtype
        self.rings: list[Ring] = []
        self._latest: tuple[list[int], list[Ring]] = ([], [])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": ([], [])}

    @property
    def held(self) -> int:
        """Snapshots held, from 0 to k."""
        return max((ring.held for ring in self.rings), default=0)

    def clear(self) -> None:
        """Forget every snapshot and give the memory back."""
        self.rings.clear()
        self._latest = ([], [])

    def collect(self, tensors: Sequence[Tensor]) -> None:
        """Take one snapshot: copy each tensor over its oldest slot (2 bytes moved per byte)."""
        for ring in self.allocate(tensors):
            ring.collect()

    def allocate(self, tensors: Sequence[Tensor]) -> list[Ring]:
        """Rings that together hold exactly these tensors, made or split where there is need."""
        ids = [id(tensor) for tensor in tensors]
        if ids != self._latest[0]:
            self._latest = (ids, self._arrange({id(tensor): tensor for tensor in tensors}))
        return self._latest[1]

    def _arrange(self, wanted: dict[int, Tensor]) -> list[Ring]:
        for ring in list(self.rings):
            inside = [tensor for tensor in ring.tensors if id(tensor) in wanted]
            if inside and len(inside) < len(ring.tensors):
                outside = [tensor for tensor in ring.tensors if id(tensor) not in wanted]
                self.rings.remove(ring)
                self.rings += [self._part(ring, inside), self._part(ring, outside)]
        chosen = [ring for ring in self.rings if id(ring.tensors[0]) in wanted]
        known = {id(tensor) for ring in chosen for tensor in ring.tensors}
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for key, tensor in wanted.items():
            if key not in known:
                kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        made = [Ring(alike, self.k, self.dtype) for alike in kinds.values()]
        self.rings += made
        return chosen + made

    def _part(self, ring: Ring, tensors: list[Tensor]) -> Ring:
        part = Ring(tensors, self.k, self.dtype)
        places = {id(tensor): index for index, tensor in enumerate(ring.tensors)}
        for new, old in zip(part.slots, ring.slots, strict=True):
            torch._foreach_copy_(new, [old[places[id(tensor)]] for tensor in tensors])
        part.held, part.next = ring.held, ring.next
        return part
