"""Leave blocks out of a model, stack copies of them, and name what that is charged as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.methods.part import MethodError
from timing import Operation


def step_at(depth: int, count: int) -> str:
    """Return what a step through the first of so many blocks is charged as."""
    return "train_step" if depth == count else f"stacked_step_{depth}_of_{count}"


def copy_to(depth: int, count: int) -> str:
    """Return what the copying that makes the first of so many blocks is charged as."""
    return f"stack_to_{depth}_of_{count}"


def through(kept: int, count: int) -> str:
    """Return what a step through so many of the blocks, whichever, is charged as."""
    return f"train_step_{kept}_of_{count}"


def pass_on(x: Tensor) -> Tensor:
    """Return what is given: the forward pass of a block that is left out."""
    return x


def keep_first(depth: int, blocks: Sequence[nn.Module]) -> None:
    """Leave out all blocks but the first: they do nothing, and get no gradients."""
    for place, block in enumerate(blocks):
        if place >= depth:
            block.forward = pass_on
        elif vars(block).get("forward") is pass_on:
            del block.forward


@contextmanager
def left_out(block: nn.Module) -> Iterator[None]:
    """Let a block give back what it is given; its parameters then have no gradients."""
    own = vars(block).get("forward")
    block.forward = pass_on
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def scaled(share: float, _: nn.Module, given: tuple[Tensor, ...], put_out: Tensor) -> Tensor:
    """Return the input plus what the block adds to it, divided by the share of steps that add."""
    return given[0] + (put_out - given[0]) / share


def tensors_of(block: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers."""
    return [*block.parameters(), *block.buffers()]


def names_in(model: nn.Module, blocks: Sequence[nn.Module]) -> tuple[str, ...]:
    """Return the names that the parameters and buffers of some blocks have in their model."""
    wanted = {id(tensor) for block in blocks for tensor in tensors_of(block)}
    named = (*model.named_parameters(), *model.named_buffers())
    return tuple(name for name, tensor in named if id(tensor) in wanted)


def quarter_half_and_all(count: int) -> tuple[int, int, int]:
    """Return how many blocks are a quarter of so many, rounded up, a half, and all.

    Raises:
        MethodError: there is none to leave out.
    """
    if count < 2:
        raise MethodError(f"layer-stacking needs 2 blocks or more, and there is {count}")
    return -(-count // 4), -(-count // 2), count


def refuse_unlike(blocks: Sequence[nn.Module], of: str) -> None:
    """Refuse blocks that cannot be copied onto each other.

    Raises:
        MethodError: naming the first of other shapes, and the workload.
    """
    shapes = [[tensor.shape for tensor in tensors_of(block)] for block in blocks]
    if unlike := [place for place, own in enumerate(shapes, 1) if own != shapes[0]]:
        raise MethodError(
            f"a block of {of} cannot be copied onto another: the parameters of block {unlike[0]} "
            "are of other shapes than those of block 1"
        )


@torch.no_grad()
def stack(blocks: Sequence[nn.Module], depth: int, to: int, optimizer: Optimizer | None) -> None:
    """Copy the first blocks onto those after `depth`; an optimizer's state too, if it is given."""
    for old, new in zip(blocks, blocks[depth:to], strict=False):
        for theirs, own in zip(tensors_of(old), tensors_of(new), strict=True):
            own.copy_(theirs)
            if optimizer is not None and theirs in optimizer.state:
                optimizer.state[own] = {
                    key: value.clone() if isinstance(value, Tensor) else value
                    for key, value in optimizer.state[theirs].items()
                }


def copyings(
    blocks: Sequence[nn.Module], depths: Sequence[int], optimizer: Optimizer | None
) -> dict[str, Operation]:
    """Return how calibration runs the copying from each depth to the next."""
    return {
        copy_to(to, len(blocks)): Operation(partial(stack, blocks, depth, to, optimizer), every=20)
        for depth, to in pairwise(depths)
    }


def kinds_of_step(depths: Sequence[int], count: int) -> list[Mapping[str, int]]:
    """Return a kind of step for each depth, with all copying that may follow it."""
    return [
        {"load_data": 1, step_at(depth, count): 1}
        | {copy_to(to, count): 1 for to in depths if to > depth}
        for depth in depths
    ]
