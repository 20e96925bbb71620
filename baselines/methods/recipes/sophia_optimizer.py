"""Sophia's update, where the estimate of the Hessian's diagonal is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer


class SophiaOptimizer(Optimizer):
    """Steps as Algorithm 3 of arXiv 2305.14342 does, and keeps the mean of Hessian estimates.

        m = beta1 m + (1 - beta1) g
        w = w - lr (decay w + sign(m) min(|m| / (rho h + eps), 1))

    `add_estimate` makes h = beta2 h + (1 - beta2) estimate. Before the first, h is zero, and each
    step goes by the sign of m.

    Args:
        groups: of parameters, each with its `lr` and `weight_decay`.
        betas: of m and of h.
        rho: what h is multiplied by; the larger, the fewer coordinates are clipped.
        eps: keeps the ratio finite.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        rho: float,
        eps: float = 1e-15,
    ) -> None:
        super().__init__(groups, {"betas": betas, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights; those without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            m, h = self._state(weights, "m"), self._state(weights, "h")
            torch._foreach_lerp_(m, gradients, 1 - group["betas"][0])
            divisors = torch._foreach_mul(h, group["rho"])
            torch._foreach_add_(divisors, group["eps"])
            steps = torch._foreach_div(m, divisors)
            torch._foreach_clamp_min_(steps, -1.0)
            torch._foreach_clamp_max_(steps, 1.0)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, steps, alpha=-group["lr"])
        return loss

    @torch.no_grad()
    def add_estimate(self, terms: int) -> None:
        """Take the squares of the gradients that there are, times their terms, into h.

        Args:
            terms: that the gradients are means over, of this rank; those of DDP are of all ranks.
        """
        if dist.is_available() and dist.is_initialized():
            terms *= dist.get_world_size()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            h, beta = self._state(weights, "h"), group["betas"][1]
            torch._foreach_mul_(h, beta)
            torch._foreach_addcmul_(h, gradients, gradients, value=(1 - beta) * terms)

    def _state(self, weights: Sequence[Tensor], name: str) -> list[Tensor]:
        for weight in weights:
            if name not in self.state[weight]:
                self.state[weight] |= {"m": torch.zeros_like(weight), "h": torch.zeros_like(weight)}
        return [self.state[weight][name] for weight in weights]
