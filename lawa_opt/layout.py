"""Tensors laid out in one row: where each lies, and which stretches are averaged at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Tensors start at multiples of this many elements, or CUDA's foreach kernels fall back to scalars.
ALIGNMENT = 16


class Cut(NamedTuple):
    """How a row is cut into stretches, in elements.

    Attributes:
        unit: each stretch begins at a multiple of it.
        longest: of a stretch.
        small: tensors up to this size share stretches.
    """

    unit: int
    longest: int
    small: int


class Stretch(NamedTuple):
    """A stretch of a row: small tensors, whole and together, or a larger one or a part of it."""

    begin: int
    end: int
    indices: list[int]


# A stretch, and it in the one tensor that it is of, if it is of one.
Target = tuple[Stretch, Tensor | None]


class Layout:
    """Places of tensors in a row, large ones first, each as a view of its own shape and strides.

    Attributes:
        stretches: of the row, in order.
        elements: of the row, a multiple of `cut.unit`.
        lengths: of each stretch and of the gap after it, so that one call cuts out all of them.
        longest: the longest of these.
        places: shape, strides and offset of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], cut: Cut) -> None:
        self.stretches: list[Stretch] = []
        end = 0
        offsets = [0] * len(tensors)
        together: list[int] = []
        for index in sorted(range(len(tensors)), key=lambda i: tensors[i].numel() <= cut.small):
            count = tensors[index].numel()
            begin = next_multiple(end, ALIGNMENT)
            is_small = count <= cut.small
            first = self.stretches[-1].begin if together else 0
            shares = together and is_small and begin + count - first <= cut.longest
            if not shares:
                begin = next_multiple(end, cut.unit)
            offsets[index], end = begin, begin + count
            if not is_small:
                for low in range(begin, end, cut.longest):
                    self.stretches.append(Stretch(low, min(low + cut.longest, end), [index]))
                continue
            if not shares:
                together = []
                self.stretches.append(Stretch(begin, begin, together))
            together.append(index)
            self.stretches[-1] = self.stretches[-1]._replace(end=end)
        self.elements = next_multiple(end, cut.unit)
        begins = [stretch.begin for stretch in self.stretches[1:]] + [self.elements]
        self.lengths = [
            length
            for (begin, end, _), following in zip(self.stretches, begins, strict=True)
            for length in (end - begin, following - end)
        ]
        self.longest = max(self.lengths)
        # An empty_like of any tensor fills its memory without gaps, in the tensor's own order.
        strides = [torch.empty_like(tensor, device="meta").stride() for tensor in tensors]
        shapes = [tensor.shape for tensor in tensors]
        self.places = list(zip(shapes, strides, offsets, strict=True))

    def views(self, row: Tensor) -> list[Tensor]:
        """Return the tensors that a row holds, which share its memory."""
        start = row.storage_offset()
        return [row.as_strided(shape, strides, start + at) for shape, strides, at in self.places]

    def conforming(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors, or in the place of one that is laid out otherwise an empty one."""
        return [
            tensor if tensor.stride() == strides else tensor.new_empty_strided(shape, strides)
            for tensor, (shape, strides, _) in zip(tensors, self.places, strict=True)
        ]

    def targets(self, tensors: Sequence[Tensor]) -> list[Target]:
        """Return each stretch, and how it lies in these tensors where it is of one alone."""
        found: list[Target] = []
        for stretch in self.stretches:
            begin, end, indices = stretch
            if len(indices) > 1:
                found.append((stretch, None))
                continue
            tensor, start = tensors[indices[0]], self.places[indices[0]][2]
            if end - begin == tensor.numel() and tensor.is_contiguous():
                flat = tensor.view(-1)  # in half the time that as_strided takes
            else:
                at = tensor.storage_offset() + begin - start
                flat = tensor.as_strided((end - begin,), (1,), at)
            found.append((stretch, flat))
        return found

    def views_of(self, values: Tensor, begin: int, indices: Sequence[int]) -> list[Tensor]:
        """Return some tensors of a stretch, in values that begin where that does in a row."""
        places = [self.places[i] for i in indices]
        return [values.as_strided(shape, stride, at - begin) for shape, stride, at in places]

    def put(self, values: Tensor, target: Target, tensors: Sequence[Tensor]) -> None:
        """Copy the values of a stretch into the tensors that it is of."""
        (begin, _, indices), flat = target
        if flat is not None:
            flat.copy_(values)
            return
        parts = self.views_of(values, begin, indices)
        torch._foreach_copy_([tensors[i] for i in indices], parts)


def next_multiple(number: int, unit: int) -> int:
    """Return the lowest multiple of a unit that is not below a number."""
    return -(-number // unit) * unit
