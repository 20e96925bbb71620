"""The k latest snapshots of a set of tensors, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lawa_opt.reduction import parted_for
from lawa_opt.ring import DTYPES, Ring, kind_of
from lawa_opt.sharding import can_shard

# The ids and kinds of the tensors collected last, and their rings.
_Latest = tuple[list[int], list[tuple[Any, ...]], list[Ring]]


class Window:
    """The k latest snapshots of tensors, taken with `collect`.

    Memory: k times the bytes of the tensors (in `dtype`, if given), allocated at the first collect,
    and once those bytes beside the tensors for a window on another device. Tensors of one kind are
    filled up to a multiple of 384 elements at most together. On the CPU, what a reading prepares is
    kept: 100 kB a snapshot of such tensors at most.
    Tensors first collected later, or only now and then, keep a ring position of their own.

    Args:
        k: snapshots held.
        dtype: the floating-point type of the slots; by default, each tensor's own.
        mesh: the ranks, all with the same parameters, that hold a part of the snapshots each.
        device: where the slots are; by default, with each tensor.
        cache: keep the mean that was read last, for a second reading before the next collect.
    """

    def __init__(
        self,
        k: int,
        dtype: torch.dtype | None = None,
        mesh: DeviceMesh | None = None,
        device: torch.device | str | None = None,
        cache: bool = False,
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of snapshots from 1: {k!r}")
        if dtype is not None and dtype not in DTYPES:
            names = ", ".join(str(known) for known in DTYPES)
            raise ValueError(f"the window's dtype must be one of {names}: {dtype!r}")
        if mesh is not None and mesh.ndim != 1:
            raise ValueError(
                f"the window is split over a mesh of one dimension: got {mesh.ndim}, take one of "
                'them, such as mesh["dp"]'
            )
        if not isinstance(cache, bool):
            raise ValueError(f"cache must be True or False: {cache!r}")
        self.k = k
        self.dtype = dtype
        self.mesh = mesh
        self.device = None if device is None else torch.device(device)
        self.cache = cache
        self.rings: list[Ring] = []
        self._latest: _Latest = ([], [], [])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": ([], [], [])}

    @property
    def num_snapshots(self) -> int:
        """Snapshots in the window, from 0 to k."""
        return max((ring.num_snapshots for ring in self.rings), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots, on whatever device."""
        return sum(ring.storage.nbytes for ring in self.rings)

    def clear(self) -> None:
        """Forget every snapshot and give the memory back."""
        self.replace([])

    def forget(self, tensors: Sequence[Tensor]) -> None:
        """Forget the snapshots of some tensors: their windows begin anew at the next collect."""
        forgotten = set(map(id, tensors))
        kept = [t for ring in self.rings for t in ring.tensors if id(t) not in forgotten]
        self.replace(self._matching({id(tensor): tensor for tensor in kept}, turned=False))

    def like(self) -> Window:
        """Return an empty window of the same settings."""
        return Window(self.k, self.dtype, self.mesh, self.device, self.cache)

    def replace(self, rings: list[Ring]) -> None:
        """Hold these rings and no others."""
        self.rings[:] = rings
        self._latest = ([], [], [])

    def rebind(self, replaced: Mapping[int, Tensor]) -> None:
        """Go on with other tensors in the place of some, which are named by their ids."""
        if not replaced:
            return
        for ring in self.rings:
            ring.tensors = [replaced.get(id(tensor), tensor) for tensor in ring.tensors]
        self._latest = ([], [], [])

    def collect(self, tensors: Sequence[Tensor], step: int | None = None) -> None:
        """Take one snapshot: copy each tensor over its oldest slot (2 bytes moved per byte).

        What is held of tensors that are not among these is forgotten once they have been missing
        for longer than they are where a framework shows an optimizer one group after the other.

        Args:
            tensors: as they are after the step.
            step: that weights by step will go by; by default, one more than that of the latest.
        """
        if step is None:
            step = 1 + max((max(ring.steps) for ring in self.rings), default=0)
        collected = self.allocate(tensors)
        for ring in collected:
            ring.collect(step)
            ring.missed = 0
        if len(collected) < len(self.rings):
            for ring in self.rings:
                ring.missed += ring not in collected
            self.rings[:] = [ring for ring in self.rings if ring.missed < len(self.rings)]

    def allocate(self, tensors: Sequence[Tensor]) -> list[Ring]:
        """Return rings that together hold exactly these tensors, made or split where need be."""
        ids, kinds = list(map(id, tensors)), list(map(kind_of, tensors))
        if ids != self._latest[0] or kinds != self._latest[1]:
            wanted = {id(tensor): tensor for tensor in tensors}
            chosen = self._matching(wanted)
            known = {id(tensor) for ring in chosen for tensor in ring.tensors}
            chosen += self._made([t for key, t in wanted.items() if key not in known])
            self._latest = (ids, kinds, chosen)
        return self._latest[2]

    def readable(self, tensors: Sequence[Tensor]) -> list[Ring]:
        """Return the rings that hold snapshots of these tensors and no others.

        Raises:
            RuntimeError: a tensor has got another shape since the latest snapshot.
        """
        ids = list(map(id, tensors))
        if ids != self._latest[0]:
            chosen = self._matching({id(tensor): tensor for tensor in tensors}, turned=False)
        else:
            chosen = self._latest[2]
        filled = [ring for ring in chosen if ring.num_snapshots]
        for ring in filled:
            for tensor, kind in zip(ring.tensors, ring.kinds, strict=True):
                if tensor.shape != kind[2]:
                    raise RuntimeError(
                        f"a tensor has shape {tuple(tensor.shape)} and its snapshots have "
                        f"{tuple(kind[2])}: train on until the next one, or call collect(), first"
                    )
        return filled

    def reshaped(self, tensors: Sequence[Tensor]) -> set[int]:
        """Return the ids of those that have got another shape since the latest snapshot."""
        wanted = set(map(id, tensors))
        return {
            id(tensor)
            for ring in (self.rings if wanted else ())
            for tensor, kind in zip(ring.tensors, ring.kinds, strict=True)
            if id(tensor) in wanted and tensor.shape != kind[2]
        }

    def _matching(self, wanted: Mapping[int, Tensor], *, turned: bool = True) -> list[Ring]:
        """Return the rings there are of wanted tensors, split from what is not wanted.

        Args:
            wanted: by their ids.
            turned: move the snapshots of tensors that are of another kind by now into other slots.
        """
        for ring in list(self.rings):
            parts: dict[Any, list[Tensor]] = {}
            for tensor, kind in zip(ring.tensors, ring.kinds, strict=True):
                now = kind_of(tensor) if turned and id(tensor) in wanted else kind
                # Slots are shared by tensors of one dtype and device.
                change = None if now == kind else (*now[:2], now[2] == kind[2])
                parts.setdefault((id(tensor) in wanted, change), []).append(tensor)
            if len(parts) > 1 or any(change for _, change in parts):
                self.rings.remove(ring)
                self.rings += [self._subset(ring, part) for part in parts.values()]
        return [ring for ring in self.rings if id(ring.tensors[0]) in wanted]

    def _made(self, tensors: Sequence[Tensor]) -> list[Ring]:
        """Return new rings for these tensors, of one kind each, and as large as is read fast."""
        kinds: dict[tuple[torch.device, torch.dtype, bool, DeviceMesh | None], list[Tensor]] = {}
        for tensor in tensors:
            kind = (tensor.device, tensor.dtype, tensor.requires_grad, self.mesh_of(tensor))
            kinds.setdefault(kind, []).append(tensor)
        made = [
            self._ring(part, kind[-1])
            for kind, alike in kinds.items()
            for part in parted_for(alike, self.k, self.dtype, self.device or kind[0])
        ]
        self.rings += made
        return made

    def _ring(self, tensors: Sequence[Tensor], mesh: DeviceMesh | None) -> Ring:
        return Ring(tensors, self.k, self.dtype, mesh, self.device, self.cache)

    def mesh_of(self, tensor: Tensor) -> DeviceMesh | None:
        """Return the ranks that the snapshots of a tensor are split over, if they are."""
        return self.mesh if can_shard(tensor) else None

    def is_sharded(self, tensor: Tensor) -> bool:
        """Return whether this process holds only a part of the snapshots of a tensor."""
        return hasattr(tensor, "to_local") or self.mesh_of(tensor) is not None

    def _subset(self, ring: Ring, tensors: list[Tensor]) -> Ring:
        """Return a ring of its own for some tensors of a ring, with its snapshots of them.

        Of a tensor that has got another shape nothing is kept: its window begins anew.
        """
        subset = self._ring(tensors, ring.mesh)
        ring.storage.synchronize()
        places = {id(tensor): index for index, tensor in enumerate(ring.tensors)}
        if any(ring.kinds[places[id(t)]][2] != t.shape for t in tensors):
            return subset
        for new, old in zip(subset.slots, ring.slots, strict=True):
            torch._foreach_copy_(new, [old[places[id(tensor)]] for tensor in tensors])
        subset.num_snapshots, subset.write_index = ring.num_snapshots, ring.write_index
        subset.steps = list(ring.steps)
        subset.missed = ring.missed
        return subset
