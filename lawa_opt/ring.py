"""A ring: the k latest snapshots of tensors that are always collected together."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lawa_opt.kept_mean import KeptMean
from lawa_opt.layout import Layout
from lawa_opt.reduction import cut_for, weighted_mean
from lawa_opt.sharding import gather, local, part_of
from lawa_opt.storage import Snapshots, Storage
from lawa_opt.weights_by_step import UNKNOWN_STEP, Weigh, weighing

# What a window may be kept in: what torch can turn into float32 and back on any device.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The weights of an average, where no others are asked for.
UNIFORM = weighing("uniform")

# What a snapshot is kept as: a tensor that changes it needs other slots.
kind_of = operator.attrgetter("dtype", "device", "shape")


class Ring:
    """k slots for some tensors of one dtype and device that are always collected together.

    Many small tensors lie in one row of a matrix, and are averaged by a few large operations, k
    snapshots at a time. With a mesh, each of its ranks holds only a part of each tensor.

    Attributes:
        num_snapshots: in the ring, from 0 to k.
        write_index: the slot that the next snapshot goes to.
        steps: after which the snapshot of each slot was taken.
        missed: collects of other tensors since the latest of these.
        kinds: what each tensor was when its slots were made.
        averages: False for integers, which have no mean.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        k: int,
        dtype: torch.dtype | None,
        mesh: DeviceMesh | None = None,
        device: torch.device | None = None,
        cache: bool = False,
    ) -> None:
        self.tensors = list(tensors)
        self.mesh = mesh
        self.k = k
        self.num_snapshots = 0
        self.write_index = 0
        self.steps = [UNKNOWN_STEP] * k
        self.missed = 0
        self.kinds = [kind_of(tensor) for tensor in self.tensors]
        shards = [self.local_shard(tensor) for tensor in self.tensors]
        self.is_sharded = any(map(operator.is_not, shards, tensors))
        first = shards[0]
        self.averages = first.is_complex() or first.dtype in DTYPES
        kept_in = (dtype if first.dtype in DTYPES else None) or first.dtype
        layout = Layout(shards, cut_for(kept_in, first.device))
        self.storage = Storage(layout, k, kept_in, first.device, device)
        self.kept = KeptMean() if cache and self.averages else None

    @property
    def slots(self) -> list[list[Tensor]]:
        """The tensors of each slot."""
        return self.storage.slots

    def local_shard(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that this process holds snapshots of."""
        if self.mesh is None:
            return local(tensor)
        return part_of(tensor, self.mesh.size(), self.mesh.get_local_rank())

    def collect(self, step: int) -> None:
        """Copy the tensors, as they are after a step, over the oldest slot."""
        sources = self.tensors
        if self.is_sharded:
            sources = [self.local_shard(tensor) for tensor in self.tensors]
        self.storage.write(self.write_index, sources)
        self.steps[self.write_index] = step
        self.write_index = (self.write_index + 1) % self.k
        self.num_snapshots = min(self.num_snapshots + 1, self.k)

    def newest_slots(self, latest: int | None = None) -> list[int]:
        """Return the indices of the latest slots in use, oldest first."""
        count = self.num_snapshots if latest is None else min(latest, self.num_snapshots)
        return [(self.write_index - count + i) % self.k for i in range(count)]

    def snapshot_of_now(self) -> list[Tensor] | None:
        """Return the newest snapshot, in its place, where the tensors have its very bits."""
        if self.mesh is not None:
            return None
        newest = self.newest_slots()[-1]
        same = self.storage.has_bits_of(newest, [local(tensor) for tensor in self.tensors])
        return self.slots[newest] if same else None

    def newest_steps(self, latest: int | None = None) -> list[int]:
        """Return the steps of the latest snapshots, oldest first."""
        return [self.steps[slot] for slot in self.newest_slots(latest)]

    def write_mean(
        self, outs: Sequence[Tensor], latest: int | None = None, weigh: Weigh = UNIFORM
    ) -> None:
        """Write the mean of the latest slots into `outs`, which have the shapes of the tensors.

        With a mesh, all its ranks must call this. What is not trained (a buffer, a frozen
        parameter) comes out bit for bit where all snapshots of it are the same. Tensors without a
        mean (integers) take their newest snapshot.
        """
        if self.mesh is None:
            self._write_local_mean([local(out) for out in outs], latest, weigh)
            return
        parts = [torch.empty_like(self.local_shard(out)) for out in outs]
        self._write_local_mean(parts, latest, weigh)
        gather(parts, outs, self.mesh)

    def _write_local_mean(self, outs: list[Tensor], latest: int | None, weigh: Weigh) -> None:
        if not self.averages:
            self.storage.read(self.newest_slots()[-1], outs)
            return
        slots = self.newest_slots(latest)
        is_trained = all(tensor.requires_grad for tensor in self.tensors)
        rows, weights = Snapshots(self.storage, slots), weigh(self.newest_steps(latest))
        write = weighted_mean if self.kept is None else self.kept.write
        write(rows, weights, outs, exact=not is_trained)
