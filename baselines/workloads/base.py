"""What a comparison needs to know of a model and its data."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.workloads.metrics import direction

Batch = tuple[Tensor, ...]
"""Inputs, targets, and where a workload offers `examples` their ids: a row an example in each."""


class WorkloadError(ValueError):
    """A workload that cannot be loaded: one line that says what is missing and what to do."""


class Batches(Protocol):
    """Endless training batches."""

    def __call__(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a seed, from index `start` on.

        The same as taking `start` of them away, but they need not be made: a resumed run begins
        here. Nothing is drawn from torch's global random generator.
        """


@dataclass(frozen=True)
class Examples:
    """The training examples by their ids, for recipes that keep something of each.

    Attributes:
        count: how many; their ids are the numbers below it. Each batch has them as its third part,
            (n,) int64.
        get: the batch of ids, (n,) int64. Nothing in it is drawn: an example is always the same,
            its mask too.
    """

    count: int
    get: Callable[[Tensor], Batch]


@dataclass(frozen=True)
class Workload:
    """Model, data, loss and metric.

    The data are in three fixed parts. Training reads the first; everything that is chosen by
    results (rates, targets, the best of several runs) is chosen on the validation part; the test
    part is read once, at the end of a run.

    Attributes:
        name: of files and tables; letters, digits, "-", "_" and ".".
        metric: name and unit of what `evaluate` returns. A name that says the contrary of
            `higher_is_better` is refused.
        make_model: a model with initial weights drawn from torch's global random generator, on the
            device it is to be trained on.
        make_optimizer: the optimizer of a model at a peak learning rate.
        learning_rate: the peak learning rate by default.
        batches: endless training batches, the same for the same seed.
        loss: the mean training loss of a batch, in training mode, which it leaves as it is.
        evaluate: the metric on the whole validation part, in evaluation mode; leaves the model, its
            mode and torch's random generator as they were.
        evaluate_test: the same on the test part.
        budget_seconds: the budget by default, in reference seconds.
        signature: what the cost of a step depends on (shapes, dtype, optimizer), for the profile.
        data: where the data come from, their size, and a SHA-256 digest as "sha256".
        bn_batches: training inputs from which BatchNorm statistics are recomputed; may be
            empty for a model without BatchNorm.
        losses: what some recipes need and a workload need not offer: the training loss of each
            example of a batch, (n,), of which `loss` is the mean where examples are as long.
        logits: of each target that `loss` is the mean cross-entropy of: (targets, classes).
        blocks: the residual blocks of a model, in order. Each takes one tensor and returns another
            of its shape, itself plus what the block adds.
        num_blocks: how many there are.
        examples: the training examples by their ids.
        source: what `baselines.workloads.load` was given, so that another process can load the
            same; it sets this itself.
        higher_is_better: of the metric.
    """

    name: str
    metric: str
    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[nn.Module, float], Optimizer]
    learning_rate: float
    batches: Batches
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], float]
    evaluate_test: Callable[[nn.Module], float]
    budget_seconds: float
    signature: dict[str, str | int]
    data: dict[str, Any]
    bn_batches: Sequence[Tensor] = ()
    losses: Callable[[nn.Module, Batch], Tensor] | None = None
    logits: Callable[[nn.Module, Batch], Tensor] | None = None
    blocks: Callable[[nn.Module], Sequence[nn.Module]] | None = None
    num_blocks: int = 0
    examples: Examples | None = None
    source: tuple[str, str | None] | None = None
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"a workload's name goes into file names: {self.name!r} must be letters, digits, "
                '"-", "_" or "."'
            )
        higher, word = direction(self.metric)
        if higher is not None and higher != self.higher_is_better:
            remedy = (
                "say higher_is_better=True, or report 1 - accuracy as 'error rate'"
                if higher
                else "leave higher_is_better out, or name the metric otherwise"
            )
            raise ValueError(
                f"workload {self.name} has the metric {self.metric!r}, of which "
                f"{self.better} is said to be better, and {word!r} says the contrary: {remedy}"
            )
        for what in ("learning_rate", "budget_seconds"):
            if not 0 < getattr(self, what) < math.inf:
                raise ValueError(
                    f"{what} of workload {self.name} must be a positive number: "
                    f"{getattr(self, what)!r:.60}"
                )
        if (self.blocks is None) != (self.num_blocks == 0):
            raise ValueError(
                f"workload {self.name} must give blocks and num_blocks together: num_blocks is "
                f"{self.num_blocks}"
            )
        if len(str(self.data.get("sha256", ""))) != 64:
            raise ValueError(
                f'data["sha256"] of workload {self.name} must be the SHA-256 digest of its data, '
                f"64 hexadecimal digits: {self.data.get('sha256')!r}"
            )

    @property
    def better(self) -> str:
        """Return which values of the metric are better: "lower" or "higher"."""
        return "higher" if self.higher_is_better else "lower"

    def badness(self, value: float) -> float:
        """Return a value of the metric as a number of which lower is better.

        Infinite, worse than any other, for one that is infinite in whatever direction, or NaN: so
        does a run that failed compare.
        """
        if not math.isfinite(value):
            return math.inf
        return -value if self.higher_is_better else value


def generator(*numbers: int) -> torch.Generator:
    """Make a generator of its own for these numbers, such as a seed and an epoch.

    What it draws depends on them alone, so any batch can be made without those before it.
    """
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients, and back afterwards; gives its device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def default_device() -> torch.device:
    """Return the GPU if there is one: where models that are too large for a CPU are trained."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
