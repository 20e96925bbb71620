"""Small trainings that the tests of LAWA share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class Replay(Optimizer):
    """Its t-th step makes the parameters the t-th of the weights it was given."""

    def __init__(self, params: list[nn.Parameter], weights: list[list[Tensor]]) -> None:
        super().__init__(params, {"lr": 1.0})
        self.weights = iter(weights)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for parameter, value in zip(
            self.param_groups[0]["params"], next(self.weights), strict=True
        ):
            parameter.copy_(value)


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return model(torch.randn(16, 4, generator=generator)).square().mean()


def by_dimension(model: nn.Module) -> list[Optimizer]:
    """Muon for the matrices of a model, and AdamW for the rest."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]


def train_apart(model: nn.Module, optimizers: Sequence[Any], steps: int) -> list[list[Tensor]]:
    """Step several optimizers over one model, and return the weights after each step."""
    history = []
    for step in range(steps):
        for opt in optimizers:
            opt.zero_grad()
        loss_of(model, step).backward()
        for opt in optimizers:
            opt.step()
        history.append(weights_of(model))
    return history


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range | int,
    *,
    closure: bool = False,
    scheduler: Any = None,
) -> None:
    """Train on batches that depend on the number of the step alone."""
    for step in range(steps) if isinstance(steps, int) else steps:

        def evaluate(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: Any, other: Any) -> bool:
    """Whether two nested structures are equal, tensors bit for bit and in dtype."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bits(one) == bits(other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def everything(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """A copy of all that a LAWA and its model are made of, to compare with `same`."""
    parts = {
        "weights": model.state_dict(),
        "base": optimizer.base.state_dict(),
        "rows": [ring.storage.rows for ring in optimizer.window.rings],
        "positions": [(ring.num_snapshots, ring.write_index) for ring in optimizer.window.rings],
        "schedule": vars(optimizer.schedule),
        "swaps": [swap.live for swap in optimizer.swaps],
    }
    return copy.deepcopy(parts)


BUILT_IN = sorted(
    (
        value
        for value in vars(torch.optim).values()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    ),
    key=lambda optimizer: optimizer.__name__,
)
NEEDS_CLOSURE = [
    optimizer
    for optimizer in BUILT_IN
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty
]


def make(kind: type[Optimizer], model: nn.Module, **options: Any) -> Optimizer:
    try:
        return kind(model.parameters(), lr=0.01, **options)
    except ValueError as error:
        if "2D parameters" not in str(error):
            raise
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        return kind(matrices, lr=0.01, **options)


def takes_dense_gradients(kind: type[Optimizer]) -> bool:
    try:
        train(model := small_model(), make(kind, model), 1, closure=kind in NEEDS_CLOSURE)
    except RuntimeError as error:
        if "does not support dense gradients" in str(error):
            return False
        raise
    return True


DENSE = [optimizer for optimizer in BUILT_IN if takes_dense_gradients(optimizer)]
