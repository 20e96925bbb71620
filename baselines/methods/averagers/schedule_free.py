"""Schedule-Free training as a method: the only file that imports its package, `schedulefree`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from schedulefree import AdamWScheduleFree, ScheduleFreeWrapper, SGDScheduleFree
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from baselines.methods.averagers.base import CALIBRATE_READING_EVERY, NoAveraging
from baselines.methods.averagers.batchnorm import has_batchnorm, update_bn
from timing import Operation


class ScheduleFree(NoAveraging):
    """Schedule-Free learning (Defazio et al., arXiv 2405.15682), by its authors' own package.

    The gradient is taken at y = (1 - beta) z + beta x, where z are the fast weights and x their
    average, which is what a reading gives. The package recommends a warm-up of the rate, no
    schedule beside it, and to tune rate and beta: rates 1 to 10 times those of AdamW, and 10 to 50
    times those of SGD with momentum. What is taken over of the workload's own optimizer:

    - AdamW, and Adam without weight decay: rate, second beta, eps and weight decay of each group,
      into AdamWScheduleFree. beta is in the place of the first one.
    - SGD: rate and weight decay of each group, into SGDScheduleFree. beta is in the place of its
      momentum.
    - Any other, or one of these with options that the package's own lack (amsgrad, maximize): the
      optimizer itself and all of its options, its momentum included, inside the package's
      experimental ScheduleFreeWrapper.

    After a reading the weights y are those of before, bit for bit: the package's own way there and
    back is off by a rounding. BatchNorm's statistics are recomputed with the weights x, as the
    package asks.

    Args:
        model: that is trained.
        optimizer: the workload's own; it is not stepped where it is replaced.
        bn_batches: inputs that BatchNorm's statistics are recomputed from.
        beta: between 0 and 1.
    """

    train_step = "schedule_free_step"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        bn_batches: Sequence[Tensor],
        beta: float,
    ) -> None:
        self.model = model
        self.optimizer: AdamWScheduleFree | SGDScheduleFree | _Wrapped
        self.optimizer = _schedule_free(optimizer, beta)
        self.optimizer.train()
        self.bn_batches = bn_batches if has_batchnorm(model) else ()
        statistics = {"statistics": 1} if self.bn_batches else {}
        self.evaluation_operations = {"swap": 1, **statistics}

    def evaluation_model(self) -> tuple[AbstractContextManager[nn.Module], Mapping[str, int]]:
        """Return the model in the average weights x, its statistics up to date."""
        return self._averaged(recompute=True), self.evaluation_operations

    @contextmanager
    def _averaged(self, *, recompute: bool) -> Iterator[nn.Module]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        with torch.no_grad():
            before = [tensor.clone() for tensor in tensors]
        self.optimizer.eval()
        try:
            if recompute and self.bn_batches:
                update_bn(self.model, self.bn_batches)
            yield self.model
        finally:
            self.optimizer.train()
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    def operations(self) -> Mapping[str, Operation]:
        """Return a swap of the weights for their average and back, and the statistics if any."""

        def swap() -> None:
            with self._averaged(recompute=False):
                pass

        def statistics() -> None:
            update_bn(self.model, self.bn_batches)

        found = {"swap": Operation(swap, every=CALIBRATE_READING_EVERY)}
        if self.bn_batches:
            found["statistics"] = Operation(statistics, every=CALIBRATE_READING_EVERY)
        return found


def _schedule_free(base: Optimizer, beta: float) -> Any:
    """Return the package's optimizer in the place of this one."""
    options = [
        name for name in ("amsgrad", "maximize") if any(g.get(name) for g in base.param_groups)
    ]
    decays = any(group.get("weight_decay") for group in base.param_groups)
    if options or type(base) not in (AdamW, Adam, SGD) or (type(base) is Adam and decays):
        return _Wrapped(base, beta)
    names = ("params", "lr", "weight_decay")
    if type(base) is SGD:
        return SGDScheduleFree(
            [{name: group[name] for name in names} for group in base.param_groups], momentum=beta
        )
    return AdamWScheduleFree(
        [
            {
                **{name: group[name] for name in (*names, "eps")},
                "betas": (beta, group["betas"][1]),
            }
            for group in base.param_groups
        ]
    )


class _Wrapped(ScheduleFreeWrapper, Optimizer):  # type: ignore[misc]
    """The package's wrapper, which torch's schedulers take for an optimizer.

    z is kept beside the base optimizer's state, not in it: most optimizers make their state at the
    first step if there is none, and would find z there and go without.
    """

    def __init__(self, base: Optimizer, beta: float) -> None:
        self._z: dict[Tensor, dict[str, Tensor]] = {
            parameter: {} for group in base.param_groups for parameter in group["params"]
        }
        ScheduleFreeWrapper.__init__(self, base, momentum=beta)
        for group in base.param_groups:
            # The package divides by it, and a warm-up begins with a rate, and so a sum, of zero.
            group["weight_sum"] = sys.float_info.min

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the fast weights z of each parameter, once it was stepped."""
        return self._z

    @staticmethod
    def swap(x: Tensor, y: Tensor) -> None:
        """Exchange two tensors, of any memory format."""
        kept = x.clone()
        x.copy_(y)
        y.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's, and z by the number of the parameter."""
        z = [entry.get("z") for entry in self._z.values()]
        return {"base": self.base.state_dict(), "z": z}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.base.load_state_dict(state_dict["base"])
        for (parameter, entry), z in zip(self._z.items(), state_dict["z"], strict=True):
            if z is not None:
                entry["z"] = z.clone().to(parameter)
