"""Weights that are spread over processes: the part that is here, and the whole again."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

# Tensors are made whole in buckets of this many elements, so that what is on its way between ranks
# stays small beside the weights.
GATHERED_ELEMENTS = 1 << 24

# The newer name of the same function; the older one warns where both are there.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is in this process: a DTensor's shard, else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def can_shard(tensor: Tensor) -> bool:
    """Return whether ranks that all have this tensor may each hold a part of its snapshots.

    A scalar has no parts, a DTensor is in parts already, and buffers may differ between ranks.
    """
    is_parameter = tensor.requires_grad or isinstance(tensor, nn.Parameter)
    return is_parameter and tensor.dim() > 0 and not hasattr(tensor, "to_local")


def split_dim(tensor: Tensor) -> int:
    """Return the dimension a tensor is divided along: its longest, so that parts differ least."""
    return max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])


def part_of(tensor: Tensor, ranks: int, rank: int) -> Tensor:
    """Return a view of what `rank` of `ranks` holds of a tensor, as DTensor's Shard divides."""
    dim = split_dim(tensor)
    whole = tensor.shape[dim]
    most = -(-whole // ranks)
    start = min(rank * most, whole)
    return tensor.detach().narrow(dim, start, min(most, whole - start))


def gather(parts: Sequence[Tensor], wholes: Sequence[Tensor], mesh: DeviceMesh) -> None:
    """Fill whole tensors from the parts on each rank of a mesh; all its ranks must call this.

    Args:
        parts: this rank's part of each whole, of the same dtype and device as the wholes.
        wholes: tensors to write.
        mesh: of one dimension.
    """
    ranks = mesh.size()
    for bucket in _buckets(wholes):
        # Every part is padded to the longest, which are rank 0's, so that all ranks send alike.
        sizes = [part_of(wholes[index], ranks, 0).numel() for index in bucket]
        own = [parts[index] for index in bucket]
        sent = own[0].new_zeros(sum(sizes))
        torch._foreach_copy_(_views(sent, sizes, own), own)
        received = sent.new_empty(ranks * sent.numel())
        _all_gather(received, sent, group=mesh.get_group())
        for rank, flat in enumerate(received.chunk(ranks)):
            targets = [part_of(wholes[index], ranks, rank) for index in bucket]
            torch._foreach_copy_(targets, _views(flat, sizes, targets))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    bucket: list[int] = []
    elements = 0
    for index, tensor in enumerate(tensors):
        if bucket and elements + tensor.numel() > GATHERED_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(index)
        elements += tensor.numel()
    if bucket:
        yield bucket


def _views(flat: Tensor, sizes: list[int], like: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(flat.split(sizes), like, strict=True)
    return [padded[: tensor.numel()].view(tensor.shape) for padded, tensor in pairs]


def reshard_fsdp_modules(parameters: Iterable[Tensor]) -> None:
    """Have FSDP gather its parameters again before it next uses them.

    After a forward pass without a backward one, FSDP keeps the gathered parameters of the root
    module, and would go on using them when the shards have been changed under it.

    Args:
        parameters: those of the optimizer, to see whether there is any FSDP at all.
    """
    parameters = list(parameters)
    if any(hasattr(parameter, "to_local") for parameter in parameters):
        from torch.distributed._composable_state import _module_state_mapping
        from torch.distributed.fsdp import FSDPModule

        for module in list(_module_state_mapping):
            if isinstance(module, FSDPModule):
                module.reshard()
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp._runtime_utils import _reshard

        # FSDP1 has neither a register of its modules nor a public way to do this.
        for object_ in gc.get_objects():
            if not issubclass(type(object_), FullyShardedDataParallel):
                continue
            handle = object_._handle
            started = object_._is_root is not None
            if started and handle is not None and handle.uses_sharded_strategy:
                _reshard(object_, handle, True)
