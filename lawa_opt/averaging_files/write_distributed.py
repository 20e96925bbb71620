"""Averages written as folders of torch.distributed.checkpoint, a part in memory at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_opt.averaging_files.mean import BATCH_BYTES, Mean
from lawa_opt.averaging_files.read import Piece

# Of the largest file that is read; with a chunk that is one whole file, 1.25 of it are in memory.
PARTS = 8


def write_distributed(mean: Mean, folder: Path, key: str) -> list[str]:
    """Write a DCP folder whose state dict lies at `key`; return notes on what is left out."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import (
        SavePlan,
        TensorWriteData,
        WriteItem,
        WriteItemType,
    )

    class Planner(DefaultSavePlanner):
        """Makes the mean of a part when it is to be written."""

        made: dict[Any, Tensor]

        def resolve_data(self, write_item: Any) -> Tensor:
            return self.made.pop(write_item.index)

    def item(piece: Piece) -> Any:
        name, low, high = piece
        like = mean.layout[name]
        row = max(1, prod(like.shape[1:]))
        offsets, sizes = torch.Size(), like.shape
        if like.dim():
            first, end = low // row, -(-high // row)
            offsets = torch.Size([first, *[0] * (like.dim() - 1)])
            sizes = torch.Size([end - first, *like.shape[1:]])
        properties = TensorProperties(dtype=like.dtype)
        data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), properties, like.shape)
        return WriteItem(
            MetadataIndex(".".join((*above, str(name))), offsets), WriteItemType.SHARD, None, data
        )

    def shape_of(item: Any) -> torch.Size:
        sizes: torch.Size = item.tensor_data.chunk.sizes
        return sizes

    above = key.split(".") if key else []
    names = {".".join((*above, str(name))): (*above, name) for name in mean.layout}
    parts = [*_parts(mean)]
    plans = [SavePlan([item(piece) for piece in part], planner_data=names) for part in parts]
    writer = FileSystemWriter(folder, thread_count=1, sync_files=True)
    planner = Planner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no ranks
        planner.set_up_planner({}, is_coordinator=True)
        writer.set_up_storage_writer(is_coordinator=True)
        plans, metadata = planner.create_global_plan(plans)
        plans = writer.prepare_global_plan(plans)
        results = []
        for part, plan in zip(parts, plans, strict=True):
            flat = {
                name: torch.empty(high - low, dtype=mean.layout[name].dtype)
                for name, low, high in part
            }
            start = {name: low for name, low, _ in part}
            for batch in mean.batches(part):
                mean.write(batch, [flat[n][a - start[n] : b - start[n]] for n, a, b in batch])
            planner.made = {
                each.index: flat[name].view(shape_of(each))
                for (name, _, _), each in zip(part, plan.items, strict=True)
            }
            results.append(writer.write_data(plan, planner).wait())
        mean.refuse_changed()
        writer.finish(metadata, results)
    left: list[str] = getattr(mean.newest, "left_out", [])
    return [f"left out beside {key}: {', '.join(left)}"] if left else []


def _parts(mean: Mean) -> Iterator[list[Piece]]:
    """Divide the mean into files, between tensors or between rows of a large one."""
    largest = max(checkpoint.largest_file for checkpoint in mean.checkpoints)
    size = max(BATCH_BYTES, largest // PARTS)
    part: list[Piece] = []
    free = size
    for name, like in mean.layout.items():
        row = max(1, prod(like.shape[1:])) * like.itemsize
        total = like.shape[0] if like.dim() else 1
        at = 0
        while at < total or (total == at == 0):
            count = max(1, min(total - at, max(free, row) // row)) if total else 0
            width = prod(like.shape[1:])
            part.append((name, at * width, (at + count) * width))
            free -= count * row
            at += count
            if free < row:
                yield part
                part, free = [], size
            if not total:
                break
    if part:
        yield part
