"""The window of a model, for loops that own no optimizer object."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from lawa_opt.optimizer import LAWA


class ModelWindow(LAWA):
    """The k latest snapshots of a model that something else trains, taken with `collect(step)`.

    For DeepSpeed's engines, optimizers inside the backward pass, and float32 masters kept
    elsewhere: all that is read and saved of a `LAWA` is read and saved of it, `averaged()`,
    `averaged_state_dict(model)` and `state_dict()` above all. It trains nothing, so `step()` is
    refused.

    Args:
        model: its parameters that require gradients are collected, and its saved buffers.
        k: snapshots in the window; the paper uses 6, above 16 is worse.
        dtype: type of the snapshots, by default each parameter's; complex ones keep their own.
        device: where the snapshots are, by default with each parameter.
        mesh: as in `LAWA`.
        cache: the same.

    Raises:
        TypeError: it is no module.
        ValueError: an argument is out of its range, or no parameter requires gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        k: int = 5,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        mesh: DeviceMesh | None = None,
        cache: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"ModelWindow takes the model: got {type(model).__name__}; wrap an optimizer in "
                "LAWA"
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("no parameter of this model requires gradients: nothing is trained")
        super().__init__(
            _Untrained(trained),
            k,
            "manual",
            buffers=model,
            dtype=dtype,
            device=device,
            mesh=mesh,
            cache=cache,
        )

    def collect(self, step: int | None = None) -> None:
        """Take a snapshot now; not of averaged weights.

        Args:
            step: after which the weights are as they are, which weights by step go by; by default,
                the snapshots are numbered from 1 on.

        Raises:
            ValueError: the step is before that of the latest collect; or none is given, and those
                of the snapshots are no such numbers.
        """
        latest = self.schedule.last_collect
        if step is None:
            self._refuse_unless_numbered(latest)
            step = latest + 1
        if isinstance(step, bool) or not isinstance(step, int) or step < max(latest, 1):
            raise ValueError(
                f"collect() takes the number of a step from {max(latest, 1)} on, where the latest "
                f"snapshot is of: {step!r}"
            )
        before, self.schedule.steps = self.schedule.steps, step
        try:
            super().collect()
        except BaseException:
            self.schedule.steps = before
            raise

    def _refuse_unless_numbered(self, latest: int) -> None:
        """Raise a ValueError where the snapshots have steps that a user gave."""
        rings = self.window.rings
        steps = max((ring.newest_steps() for ring in rings), key=len, default=[])
        one_of_many = len(steps) == 1 and self.window.k > 1 and latest > 1
        if one_of_many or steps != list(range(latest - len(steps) + 1, latest + 1)):
            raise ValueError(
                f"the latest snapshot is of step {latest}: give this one's step too, collect(step)"
            )


class _Untrained(Optimizer):
    """Holds the parameters that something else trains."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> NoReturn:  # noqa: ARG002
        raise RuntimeError(
            "a ModelWindow trains nothing: step what trains the model, and call collect(step)"
        )
