"""What a comparison needs to know of a model and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.optim import Optimizer

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """Model, data, loss and metric.

    Attributes:
        name: as given to `--workload`.
        metric: name and unit of what `evaluate` returns; lower is better.
        make_model: a model with initial weights drawn from torch's global random generator.
        make_optimizer: the optimizer of a model at a peak learning rate.
        learning_rate: the peak learning rate by default.
        batches: endless training batches, the same for the same seed.
        loss: the mean training loss of a batch, in training mode.
        evaluate: the metric on the whole validation part, in evaluation mode.
        statistics_batches: training inputs from which BatchNorm statistics are recomputed.
        budget_seconds: the budget by default, in reference seconds.
        signature: what the cost of a step depends on (shapes, dtype, optimizer), for the profile.
        data: where the data come from, their size and their SHA-256 digest.
    """

    name: str
    metric: str
    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[nn.Module, float], Optimizer]
    learning_rate: float
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], float]
    statistics_batches: Sequence[Tensor]
    budget_seconds: float
    signature: dict[str, str | int]
    data: dict[str, Any]
