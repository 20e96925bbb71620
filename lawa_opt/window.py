"""The k latest snapshots of a set of tensors, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lawa_opt.distributed import can_split, gather, local, part_of
from lawa_opt.mean import BLOCKS, bags_of, in_bags, mean_writer

# A mean is made a tile at a time, so that what lies between snapshots and mean stays in the cache:
# a reading moves k + 1 times the tensors' bytes through memory. A smaller tile pays in calls, a
# larger one leaves the cache; a GPU wants few, large kernels.
TILE = {"cpu": 1 << 20}
TILE_ELSEWHERE = 1 << 22

# Tensors up to this size share tiles: fewer calls, for one more copy. The mean of a larger one is
# made in the place where it goes. On the CPU that of bags is copied anyway, so all share that can.
SMALL = {"cpu": TILE["cpu"]}
SMALL_ELSEWHERE = 1 << 13

# What a window may be kept in: what torch can turn into float32 and back on any device.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Slots start at multiples of this many elements, or CUDA's foreach kernels fall back to scalars.
ALIGNMENT = 16


# What a snapshot is kept as: a tensor that changes it needs other slots.
kind_of = attrgetter("dtype", "device", "shape")


def _next_multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit


class Ring:
    """k slots for some tensors of one dtype and device that are always collected together.

    One matrix holds them, a row a slot; in a row is each tensor, as a view of its own shape and
    strides. Many small tensors are then averaged by a few large operations, k snapshots at a time.
    With a mesh, each of its ranks holds only a part of each tensor. For a device other than the
    tensors', one more buffer beside them takes the snapshot, in order with training; from CUDA to
    host memory, which is pinned, it then moves on a stream of its own, while training goes on.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        k: int,
        dtype: torch.dtype | None,
        mesh: DeviceMesh | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.tensors = list(tensors)
        self.mesh = mesh
        self.k = k
        self.held = 0
        self.next = 0
        self.missed = 0
        self.kinds = [kind_of(tensor) for tensor in self.tensors]
        locals_ = [self.own(tensor) for tensor in self.tensors]
        self.sharded = any(part is not whole for part, whole in zip(locals_, tensors, strict=True))
        self.averages = locals_[0].is_complex() or locals_[0].dtype in DTYPES
        self.home = locals_[0].device
        self.away = device is not None and device != self.home
        given = dtype if locals_[0].dtype in DTYPES else None
        kept_in = given or locals_[0].dtype
        self._lay_out(locals_, BLOCKS.get(kept_in, ALIGNMENT))
        # A window made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.rows = torch.zeros(
                (k, self.elements),
                dtype=kept_in,
                device=device or self.home,
            )
            self._connect()

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        # Plain pickle does not keep views aliased to their buffer, and a stream is of its process.
        made = ("flats", "slots", "columns", "bags", "staging", "staged", "stream")
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _lay_out(self, tensors: Sequence[Tensor], block: int) -> None:
        """Place the tensors in a row, large ones first, and cut it into tiles.

        A tile is (begin, end, indices): a stretch of the row from a multiple of `block` on, and
        which tensors it holds; small ones whole and together, a larger one alone or in parts.
        """
        limit = TILE.get(self.home.type, TILE_ELSEWHERE) // block * block
        small = min(limit, SMALL.get(self.home.type, SMALL_ELSEWHERE))
        end = 0
        self.tiles: list[tuple[int, int, list[int]]] = []
        offsets = [0] * len(tensors)
        together: list[int] = []
        for index in sorted(range(len(tensors)), key=lambda i: tensors[i].numel() <= small):
            count = tensors[index].numel()
            begin = _next_multiple(end, ALIGNMENT)
            shares = together and count <= small and begin + count - self.tiles[-1][0] <= limit
            if not shares:
                begin = _next_multiple(end, block)
            offsets[index], end = begin, begin + count
            if count > small:
                for low in range(begin, end, limit):
                    self.tiles.append((low, min(low + limit, end), [index]))
                continue
            if not shares:
                together = []
                self.tiles.append((begin, begin, together))
            together.append(index)
            self.tiles[-1] = (self.tiles[-1][0], end, together)
        self.elements = _next_multiple(end, block)
        begins = [begin for begin, _, _ in self.tiles[1:]] + [self.elements]
        # Of each tile and of the gap after it, so that one call cuts out all of them.
        self.lengths = [
            length
            for (begin, end, _), following in zip(self.tiles, begins, strict=False)
            for length in (end - begin, following - end)
        ]
        # An empty_like of any tensor fills its memory without gaps, in the tensor's own order.
        strides = [torch.empty_like(tensor, device="meta").stride() for tensor in tensors]
        shapes = [tensor.shape for tensor in tensors]
        self.layouts = list(zip(shapes, strides, offsets, strict=True))

    def _views(self, flat: Tensor) -> list[Tensor]:
        start = flat.storage_offset()
        return [flat.as_strided(shape, strides, start + at) for shape, strides, at in self.layouts]

    def _connect(self) -> None:
        """Make what can be made again: the views, and the way to another device."""
        self.staging: Tensor | None = None
        self.stream: torch.cuda.Stream | None = None
        if self.away:
            self.staging = staging = torch.empty_like(self.rows[0], device=self.home)
            self.staged = self._views(staging)
            if self.home.type == "cuda" and self.rows.device.type == "cpu":
                self.rows = self.rows.pin_memory()
                self.stream = torch.cuda.Stream(self.home)
                staging.record_stream(self.stream)
        self.flats = list(self.rows.unbind())
        self.slots = [self._views(flat) for flat in self.flats]
        self.columns = self._columns(self.rows)
        self.bags: tuple[tuple[int, ...], Callable[[int, int], Tensor]] | None = None

    def _columns(self, rows: Tensor) -> list[Tensor]:
        """Of each tile, a column a slot."""
        columns: list[Tensor] = list(rows.t().split(self.lengths)[::2])
        return columns

    def settle(self) -> None:
        """Wait until snapshots on their way to host memory are there."""
        if self.stream is not None:
            self.stream.synchronize()

    def own(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that this process holds snapshots of."""
        if self.mesh is None:
            return local(tensor)
        return part_of(tensor, self.mesh.size(), self.mesh.get_local_rank())

    def collect(self) -> None:
        """Copy the tensors over the oldest slot."""
        sources = [self.own(tensor) for tensor in self.tensors] if self.sharded else self.tensors
        if self.staging is None:
            torch._foreach_copy_(self.slots[self.next], sources)
        else:
            self._send(self.staging, sources)
        self.next = (self.next + 1) % self.k
        self.held = min(self.held + 1, self.k)

    def _send(self, staging: Tensor, sources: list[Tensor]) -> None:
        if self.stream is None:
            torch._foreach_copy_(self.staged, sources)
            self.flats[self.next].copy_(staging)
            return
        training = torch.cuda.current_stream(self.home)
        training.wait_stream(self.stream)  # the snapshot before must have left the staging
        torch._foreach_copy_(self.staged, sources)
        self.stream.wait_stream(training)
        with torch.cuda.stream(self.stream):
            self.flats[self.next].copy_(staging, non_blocking=True)

    def order(self, latest: int | None = None) -> list[int]:
        """Indices of the latest slots in use, oldest first."""
        count = self.held if latest is None else min(latest, self.held)
        return [(self.next - count + i) % self.k for i in range(count)]

    def write_mean(self, outs: Sequence[Tensor], latest: int | None = None) -> None:
        """Write the mean of the latest slots into `outs`, which have the shapes of the tensors.

        With a mesh, all its ranks must call this.
        """
        if self.mesh is None:
            self._write_own_mean([local(out) for out in outs], latest)
            return
        parts = [torch.empty_like(self.own(out)) for out in outs]
        self._write_own_mean(parts, latest)
        gather(parts, outs, self.mesh)

    # Of many small tensors, making a view each is a good part of a reading. Inference mode makes
    # one in three quarters of the time, and autograd still sees that `outs` were written.
    @torch.inference_mode()
    def _write_own_mean(self, outs: list[Tensor], latest: int | None) -> None:
        """Write the mean of what this process holds.

        The mean runs in float32 or wider and is rounded once more, to the dtype of `outs`. What is
        not trained (a buffer, a frozen parameter) comes out bit for bit where all snapshots of it
        are the same. Tensors without a mean (integers) take their newest snapshot.
        """
        laid_out = [
            out if out.stride() == strides else out.new_empty_strided(shape, strides)
            for out, (shape, strides, _) in zip(outs, self.layouts, strict=True)
        ]
        if self.stream is not None:
            torch.cuda.current_stream(self.home).wait_stream(self.stream)
        if self.averages:
            self._average(laid_out, self.order(latest))
        else:
            torch._foreach_copy_(laid_out, self.slots[self.order()[-1]])
        if self.stream is not None:  # a collect must not overtake this reading
            self.stream.wait_stream(torch.cuda.current_stream(self.home))
        for out, same in zip(outs, laid_out, strict=True):
            if out is not same:
                out.copy_(same)

    def _average(self, outs: Sequence[Tensor], order: Sequence[int]) -> None:
        """Write the mean of these slots, tile by tile, into `outs`, laid out as the slots are."""
        dtypes = {out.dtype for out in outs}
        exact = not all(tensor.requires_grad for tensor in self.tensors)
        tiles = list(zip(self.tiles, self._flat(outs), strict=True))
        on_cpu = self.home.type == self.rows.device.type == "cpu"
        if on_cpu and not exact and len(order) > 1 and in_bags(self.rows.dtype, dtypes):
            mean_of = self._bags(tuple(sorted(order)))
            for tile, out in tiles:
                self._put(mean_of(*tile[:2]), tile, out, outs)
            return
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        shared = torch.empty(max(self.lengths), dtype=dtype, device=self.home)
        # Slots beside one another, as those of a full window are, are read where they are and in
        # their own order, whichever is the oldest.
        first, last = min(order), max(order)
        beside = last - first == len(order) - 1
        all_columns = self.columns
        if beside and len(order) < self.k:
            all_columns = self._columns(self.rows[first : last + 1])
        copied = None
        if self.away or not beside:
            copied = self._copier(slice(None) if beside else list(order), len(order))
        write = mean_writer(len(order), self.home, exact=exact)
        # What torch and Python do between two tiles costs as much as thousands of numbers: the
        # tiles have pushed it out of the cache.
        direct = dtypes == {dtype} and all(out.device == self.home for out in outs)
        for (tile, out), columns in zip(tiles, all_columns, strict=True):
            snapshots = columns if copied is None else copied(columns)
            if direct and out is not None:
                write(snapshots, out)
                continue
            mean = shared[: len(snapshots)]
            write(snapshots, mean)
            self._put(mean, tile, out, outs)

    def _bags(self, slots: tuple[int, ...]) -> Callable[[int, int], Tensor]:
        """What makes the mean of these slots; kept, for making it takes as long as a small mean."""
        if self.bags is None or self.bags[0] != slots:
            self.bags = slots, bags_of(self.rows, slots, max(self.lengths))
        return self.bags[1]

    def _put(
        self,
        mean: Tensor,
        tile: tuple[int, int, list[int]],
        out: Tensor | None,
        outs: Sequence[Tensor],
    ) -> None:
        """Copy the mean of a tile to where it goes, which is `out` if that is one place."""
        if out is not None:
            out.copy_(mean)
            return
        begin, _, indices = tile
        places = [self.layouts[i] for i in indices]
        means = [mean.as_strided(shape, stride, at - begin) for shape, stride, at in places]
        torch._foreach_copy_([outs[i] for i in indices], means)

    def _flat(self, outs: Sequence[Tensor]) -> list[Tensor | None]:
        """The stretch of each tile in the one tensor that it is of; None where it is of several."""
        found: list[Tensor | None] = []
        for begin, end, indices in self.tiles:
            if len(indices) > 1:
                found.append(None)
                continue
            out, start = outs[indices[0]], self.layouts[indices[0]][2]
            if end - begin == out.numel() and out.is_contiguous():
                found.append(out.view(-1))  # in half the time that as_strided takes
                continue
            at = out.storage_offset() + begin - start
            found.append(out.as_strided((end - begin,), (1,), at))
        return found

    def _copier(self, chosen: slice | list[int], count: int) -> Callable[[Tensor], Tensor]:
        """What copies these columns of a tile, so many, to where their mean is made."""
        buffer = torch.empty(count * max(self.lengths), dtype=self.rows.dtype, device=self.home)

        def copied(columns: Tensor) -> Tensor:
            there = columns.t()[chosen]
            here = buffer[: there.numel()].view(there.shape)
            # One by one, for a matrix with gaps would be copied where it is first.
            for row, snapshot in zip(here, there, strict=True):
                row.copy_(snapshot, non_blocking=self.stream is not None)
            return here.t()

        return copied


class Window:
    """The k latest snapshots of tensors, taken with `collect`.

    Memory: k times the bytes of the tensors (in `dtype`, if given), allocated at the first collect,
    and once those bytes beside the tensors for a window on another device. Tensors of one kind are
    filled up to a multiple of `BLOCKS` elements together. On the CPU, what a reading looks up is
    kept: 100 kB a snapshot of such tensors at most.
    Tensors first collected later, or only now and then, keep a ring position of their own.

    Args:
        k: snapshots held.
        dtype: the floating-point type of the slots; by default, each tensor's own.
        mesh: the ranks, all with the same parameters, that hold a part of the snapshots each.
        device: where the slots are; by default, with each tensor.
    """

    def __init__(
        self,
        k: int,
        dtype: torch.dtype | None = None,
        mesh: DeviceMesh | None = None,
        device: torch.device | str | None = None,
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
        self.k = k
        self.dtype = dtype
        self.mesh = mesh
        self.device = None if device is None else torch.device(device)
        self.rings: list[Ring] = []
        self._latest: _Latest = ([], [], [])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": ([], [], [])}

    @property
    def held(self) -> int:
        """Snapshots held, from 0 to k."""
        return max((ring.held for ring in self.rings), default=0)

    def clear(self) -> None:
        """Forget every snapshot and give the memory back."""
        self.replace([])

    def like(self) -> Window:
        """Return an empty window of the same settings."""
        return Window(self.k, self.dtype, self.mesh, self.device)

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

    def collect(self, tensors: Sequence[Tensor]) -> None:
        """Take one snapshot: copy each tensor over its oldest slot (2 bytes moved per byte).

        What is held of tensors that are not among these is forgotten once they have been missing
        for longer than they are where a framework shows an optimizer one group after the other.
        """
        collected = self.allocate(tensors)
        for ring in collected:
            ring.collect()
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
        held = [ring for ring in chosen if ring.held]
        for ring in held:
            for tensor, kind in zip(ring.tensors, ring.kinds, strict=True):
                if tensor.shape != kind[2]:
                    raise RuntimeError(
                        f"a tensor has shape {tuple(tensor.shape)} and its snapshots have "
                        f"{tuple(kind[2])}: train on until the next one, or call collect(), first"
                    )
        return held

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
                self.rings += [self._some(ring, part) for part in parts.values()]
        return [ring for ring in self.rings if id(ring.tensors[0]) in wanted]

    def _made(self, tensors: Sequence[Tensor]) -> list[Ring]:
        """Return new rings for these tensors, one for those of one kind."""
        kinds: dict[tuple[torch.device, torch.dtype, bool, DeviceMesh | None], list[Tensor]] = {}
        for tensor in tensors:
            kind = (tensor.device, tensor.dtype, tensor.requires_grad, self.mesh_of(tensor))
            kinds.setdefault(kind, []).append(tensor)
        made = [self._ring(alike, kind[-1]) for kind, alike in kinds.items()]
        self.rings += made
        return made

    def _ring(self, tensors: Sequence[Tensor], mesh: DeviceMesh | None) -> Ring:
        return Ring(tensors, self.k, self.dtype, mesh, self.device)

    def mesh_of(self, tensor: Tensor) -> DeviceMesh | None:
        """The ranks that the snapshots of a tensor are split over, if they are."""
        return self.mesh if can_split(tensor) else None

    def in_parts(self, tensor: Tensor) -> bool:
        """Whether this process holds only a part of the snapshots of a tensor."""
        return hasattr(tensor, "to_local") or self.mesh_of(tensor) is not None

    def _some(self, ring: Ring, tensors: list[Tensor]) -> Ring:
        """Return a ring of its own for some tensors of a ring, with its snapshots of them.

        Of a tensor that has got another shape nothing is kept: its window begins anew.
        """
        some = self._ring(tensors, ring.mesh)
        ring.settle()
        places = {id(tensor): index for index, tensor in enumerate(ring.tensors)}
        if any(ring.kinds[places[id(t)]][2] != t.shape for t in tensors):
            return some
        for new, old in zip(some.slots, ring.slots, strict=True):
            torch._foreach_copy_(new, [old[places[id(tensor)]] for tensor in tensors])
        some.held, some.next, some.missed = ring.held, ring.next, ring.missed
        return some


# The ids and kinds of the tensors collected last, and their rings.
_Latest = tuple[list[int], list[tuple[Any, ...]], list[Ring]]
