"""Memory for the snapshots of some tensors, on their device or another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lawa_opt.layout import ALIGNMENT, Layout, next_multiple

# What bits are compared as: the wider, the faster.
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Storage:
    """A matrix with one snapshot of the tensors in each row.

    For a device other than the tensors', one more row beside them takes the snapshot, in order with
    training; from CUDA to host memory, which is pinned, it then moves on a stream of its own, while
    training goes on.

    Args:
        layout: of the tensors in a row.
        k: rows.
        dtype: of the snapshots.
        param_device: where the tensors are.
        device: where the snapshots are; by default, with the tensors.

    Attributes:
        rows: the matrix.
        slots: of each row, the tensors in it.
        is_offloaded: True if the snapshots are on another device than the tensors.
        prepared: what a reading has made for the next one alike.
        borrowers: called before a row is written to, for they have values in it alone.
    """

    def __init__(
        self,
        layout: Layout,
        k: int,
        dtype: torch.dtype,
        param_device: torch.device,
        device: torch.device | None,
    ) -> None:
        self.layout = layout
        self.param_device = param_device
        self.is_offloaded = device is not None and device != param_device
        # A window made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.rows = torch.zeros(
                (k, layout.elements), dtype=dtype, device=device or param_device
            )
            self._build_views()

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        # Plain pickle does not keep views aliased to their buffer, and a stream is of its process.
        made = ("slots", "staging", "staged", "stream", "prepared", "borrowers", "_flats")
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_views()

    def _build_views(self) -> None:
        """Make what can be made again: the views, and the way to another device."""
        self.staging: Tensor | None = None
        self.stream: torch.cuda.Stream | None = None
        if self.is_offloaded:
            self.staging = staging = torch.empty_like(self.rows[0], device=self.param_device)
            self.staged = self.layout.views(staging)
            if self.param_device.type == "cuda" and self.rows.device.type == "cpu":
                self.rows = self.rows.pin_memory()
                self.stream = torch.cuda.Stream(self.param_device)
                staging.record_stream(self.stream)
        self.prepared: dict[Any, Any] = {}
        self.borrowers: list[Callable[[], object]] = []
        self._flats = list(self.rows.unbind())
        self.slots = [self.layout.views(flat) for flat in self._flats]

    @property
    def nbytes(self) -> int:
        """Bytes of the snapshots; an offloaded storage has one row more beside the tensors."""
        return self.rows.nbytes

    def write(self, slot: int, sources: list[Tensor]) -> None:
        """Copy the tensors into a row, maybe in the background."""
        while self.borrowers:
            self.borrowers.pop()()
        if self.staging is None:
            torch._foreach_copy_(self.slots[slot], sources)
        elif self.stream is None:
            torch._foreach_copy_(self.staged, sources)
            self._flats[slot].copy_(self.staging)
        else:
            training = torch.cuda.current_stream(self.param_device)
            training.wait_stream(self.stream)  # the snapshot before must have left the staging
            torch._foreach_copy_(self.staged, sources)
            self.stream.wait_stream(training)
            with torch.cuda.stream(self.stream):
                self._flats[slot].copy_(self.staging, non_blocking=True)

    def read(self, slot: int, outs: list[Tensor]) -> None:
        """Copy a row into tensors."""
        self.begin_reading()
        torch._foreach_copy_(outs, self.slots[slot])
        self.end_reading()

    @torch.inference_mode()
    def has_bits_of(self, slot: int, tensors: Sequence[Tensor]) -> bool:
        """Return whether a row is, bit for bit, what tensors hold, and lies as they do.

        Bits, for numbers would make -0 of 0, and no NaN the same. It takes the memory of a stretch,
        and ends at one that differs: where the weights have moved on, at the first.
        """
        row, places = self._flats[slot], self.layout.places
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
        pairs = zip(tensors, places, strict=True)
        laid_out = all(tensor.stride() == place[1] for tensor, place in pairs)
        if kinds != {(row.dtype, row.device)} or not laid_out or row.is_inference():
            return False
        if row.is_meta:  # no bits are there
            return False
        stretches = self._bits_of(row, tensors)
        if row.device.type == "cpu":
            return all(itertools.starmap(torch.equal, stretches))
        if not torch.equal(*next(stretches)):
            return False
        # The processor waits for the device once.
        differ = [one.ne(other).any() for one, other in stretches]
        return not (differ and bool(torch.stack(differ).any()))

    def _bits_of(self, row: Tensor, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what tensors and a row hold of each stretch, as integers."""
        for (begin, end, indices), flat in self.layout.targets(tensors):
            own = row[begin:end]
            if flat is None:
                own = row[begin : next_multiple(end, ALIGNMENT)]
                flat = torch.zeros_like(own)  # as what lies between tensors in a row
                views = self.layout.views_of(flat, begin, indices)
                torch._foreach_copy_(views, [tensors[i] for i in indices])
            places = (flat.storage_offset(), own.storage_offset(), len(own))
            bits = next(
                bits
                for bits in INTEGERS
                if all(place * row.itemsize % bits.itemsize == 0 for place in places)
            )
            yield flat.view(bits), own.view(bits)

    def synchronize(self) -> None:
        """Wait until snapshots on their way to host memory are there."""
        if self.stream is not None:
            self.stream.synchronize()

    def begin_reading(self) -> None:
        """Have the device's current stream wait for snapshots on their way."""
        if self.stream is not None:
            torch.cuda.current_stream(self.param_device).wait_stream(self.stream)

    def end_reading(self) -> None:
        """Have the next snapshot wait until this reading is done."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.param_device))


class Snapshots(NamedTuple):
    """Some rows of a storage, oldest first."""

    storage: Storage
    slots: Sequence[int]
