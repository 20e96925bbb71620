"""Weights of the snapshots, learnt on held-out batches (trainable weight averaging, 2205.13104)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lawa_opt.average import Average
from lawa_opt.messages import ArgumentError, warn
from lawa_opt.ring import Ring

Loss = Callable[[Any], Tensor]
Averaged = Callable[..., AbstractContextManager[None]]

MAX_PASSES = 30
# Of the log of a weight in one pass, at first; a pass that does not help tries half of it.
FIRST_MOVE = 1.0
LEAST_MOVE = 1e-2


class FittedWeights(NamedTuple):
    """Weights of the snapshots, and what they are worth on batches that they were not fitted to.

    `averaged(weights=fitted)` takes them as long as the window holds these very snapshots.

    Attributes:
        weights: one a snapshot, oldest first, from 0 on and of sum 1.
        uniform_loss: the mean loss of the uniform average over the other batches.
        loss: the same with these weights.
        steps: after which the snapshots were taken.
    """

    weights: list[float]
    uniform_loss: float
    loss: float
    steps: list[int]

    def __call__(self, steps: Sequence[int]) -> list[float]:
        """Return the weights, for the snapshots of these steps.

        Raises:
            ArgumentError: they were fitted to others.
        """
        if list(steps) != self.steps:
            raise ArgumentError(
                f"these weights were fitted to the snapshots of steps {_listed(self.steps)}, and "
                f"these are of {_listed(steps)}: fit_weights() again"
            )
        return self.weights

    @property
    def gain(self) -> float:
        """Return how far the loss on the other batches falls below that of the uniform mean."""
        return self.uniform_loss - self.loss


def fitted_weights(
    average: Average, averaged: Averaged, loss: Loss, batches: Sequence[Any]
) -> FittedWeights:
    """Return the weights of the snapshots in a window whose average has the least loss.

    By exponentiated gradients from the uniform mean on: the gradient by a snapshot's weight is that
    by the average, times the snapshot. It takes no memory but that of gradients.

    Args:
        average: of the window.
        averaged: LAWA's own, which puts it into the model.
        loss: as in `LAWA.fit_weights`, and so are the errors.
        batches: the same.
    """
    held = list(batches)
    if len(held) < 2:
        raise ValueError(f"two batches are needed, one to fit to and one to check: got {len(held)}")
    rings = _rings_of(average)
    count = rings[0].num_snapshots
    fitted, others = held[::2], held[1::2]
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    uniform = weights
    value, gradient = _evaluated(averaged, loss, fitted, weights, rings)
    move = FIRST_MOVE
    for _ in range(MAX_PASSES):
        centred = gradient - (weights * gradient).sum()
        size = float(centred.abs().max())
        if size == 0 or move < LEAST_MOVE:
            break
        moved = weights * torch.exp(-move * centred / size)
        moved /= moved.sum()
        after, its_gradient = _evaluated(averaged, loss, fitted, moved, rings)
        if after < value:
            weights, value, gradient = moved, after, its_gradient
        else:
            move /= 2
    found = FittedWeights(
        weights.tolist(),
        _evaluated(averaged, loss, others, uniform)[0],
        _evaluated(averaged, loss, others, weights)[0],
        rings[0].newest_steps(),
    )
    if count == 1:
        warn("fit_weights(): the window holds one snapshot, so there is nothing to weigh: train on")
    elif found.gain <= 0:
        warn(
            f"fit_weights(): on {len(others)} other batches the loss is {found.loss:.6g}, and "
            f"{found.uniform_loss:.6g} with the uniform mean: take that, or fit to more batches"
        )
    return found


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _rings_of(average: Average) -> list[Ring]:
    """Return the rings of what is trained.

    Raises:
        RuntimeError: the window is empty.
        ValueError: it is in parts, complex, or does not hold equally many snapshots of all.
    """
    rings = average.nonempty_rings(None)
    if any(map(average.window.is_sharded, average.tensors())):
        raise ValueError("weights cannot be fitted to a window that is in parts, over ranks")
    counts = sorted({ring.num_snapshots for ring in rings})
    if len(counts) > 1:
        raise ValueError(
            f"some tensors have {counts[0]} snapshots and others {counts[-1]}: train on until all "
            "have as many"
        )
    trained = [
        ring for ring in rings if ring.averages and any(t.requires_grad for t in ring.tensors)
    ]
    if not trained or any(ring.tensors[0].is_complex() for ring in trained):
        raise ValueError("weights are fitted to real tensors that require gradients: got others")
    for ring in trained:
        ring.storage.synchronize()
    return trained


def _refuse_other_than_a_loss(value: object, with_gradient: bool) -> None:
    """Raise a TypeError or ValueError where this is no loss that can be fitted to."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"loss(batch) must return a tensor, without .item(): got {type(value).__name__}"
        )
    if value.numel() != 1:
        raise ValueError(
            "loss(batch) must return the mean loss, a tensor of one element: got shape "
            f"{tuple(value.shape)}"
        )
    if with_gradient and not value.requires_grad:
        raise ValueError(
            "the loss that loss(batch) returned has no gradient: compute it from the model, "
            "without no_grad() and detach()"
        )


def _evaluated(
    averaged: Averaged,
    loss: Loss,
    batches: Sequence[Any],
    weights: Tensor,
    rings: Sequence[Ring] = (),
) -> tuple[float, Tensor]:
    """Return the mean loss of an average, and with rings its gradient by the weights."""
    tensors = [tensor for ring in rings for tensor in ring.tensors if tensor.requires_grad]
    gradient = torch.zeros_like(weights)
    total = 0.0
    with averaged(weights=weights.tolist()):
        for batch in batches:
            with torch.set_grad_enabled(bool(rings)):
                value = loss(batch)
            _refuse_other_than_a_loss(value, with_gradient=bool(rings))
            total += float(value.detach()) / len(batches)
            if not rings:
                continue
            found = torch.autograd.grad(value, tensors, allow_unused=True)
            if all(slope is None for slope in found):
                raise ValueError(
                    "the loss is of none of the averaged weights: have loss(batch) run the model "
                    "that LAWA averages"
                )
            slopes = {id(t): slope for t, slope in zip(tensors, found, strict=True)}
            for ring in rings:
                for place, slot in enumerate(ring.newest_slots()):
                    for tensor, snapshot in zip(ring.tensors, ring.slots[slot], strict=True):
                        slope = slopes.get(id(tensor))
                        if slope is not None:
                            product = slope.double() * snapshot.to(slope.device).double()
                            gradient[place] += float(product.sum()) / len(batches)
    if not torch.tensor(total).isfinite():
        raise ValueError(
            f"the loss of an average over the window is {total}: nothing can be fitted"
        )
    return total, gradient
