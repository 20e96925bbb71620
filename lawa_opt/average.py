"""The average that can be read now, and what of the tensors has none and stays live."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lawa_opt import coverage
from lawa_opt.buffers import Buffers
from lawa_opt.messages import is_called_from, warn
from lawa_opt.ring import UNIFORM, Ring
from lawa_opt.schedule import CollectSchedule
from lawa_opt.swap import Swap, forget_derived
from lawa_opt.weights_by_step import Weigh
from lawa_opt.window import Window


class Average:
    """The mean of a window, over the tensors that an optimizer and its model have now.

    Args:
        base: the optimizer of the parameters.
        window: of their snapshots.
        schedule: that they were collected by.
        buffers: averaged beside the parameters.

    Attributes:
        was_read: whether anybody has asked for the average.

    Raises:
        ValueError: the optimizer has no parameter of the modules given as buffers.
    """

    def __init__(
        self, base: Optimizer, window: Window, schedule: CollectSchedule, buffers: Buffers
    ) -> None:
        self.base = base
        self.window = window
        self.schedule = schedule
        self.buffers = buffers
        self.said: set[str] = set()
        self.was_read = False
        coverage.refuse_masters(buffers.modules, self.parameters())
        self._remember_kinds()

    def __getstate__(self) -> dict[str, Any]:
        # References to tensors of this process.
        return {name: value for name, value in vars(self).items() if name != "_kinds"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember_kinds()

    def _remember_kinds(self) -> None:
        """Remember the parameters' kinds, if `model.to()` could leave given buffers behind."""
        known = self.parameters() if self.buffers.tensors else []
        self._kinds = [(weakref.ref(p), p.dtype, p.device) for p in known]

    def say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self.said:
            self.said.add(text)
            warn(text)

    def warn_of_lightning(self) -> None:
        """Warn where Lightning takes the state for a checkpoint and nothing reads the window."""
        if not self.was_read and is_called_from("lightning.pytorch", "pytorch_lightning"):
            self.say(
                "Lightning saves a checkpoint and nothing has read the window: what it validates "
                "and saves are the live weights. To have the average there, return the optimizer "
                "alone and add lawa_opt.lightning.LAWACallback to the Trainer"
            )

    def parameters(self) -> list[Tensor]:
        """Return the parameters that the optimizer has now."""
        return [p for group in self.base.param_groups for p in group["params"]]

    def tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that there are now, known to the window as such.

        Raises:
            RuntimeError: buffers were given as tensors and the model has others by now.
        """
        parameters = self.parameters()
        if not self.buffers:
            return parameters
        for known, dtype, device in self._kinds:
            parameter = known()
            if parameter is not None and (parameter.dtype, parameter.device) != (dtype, device):
                raise RuntimeError(
                    f"a parameter is {parameter.dtype} on {parameter.device} and was {dtype} on "
                    f"{device} when the buffers were given: model.to() has put other tensors in "
                    "the place of these. Give LAWA the model itself, buffers=model"
                )
        buffers, replaced = self.buffers.look_up()
        self.window.rebind(replaced)
        return parameters + buffers

    def nonempty_rings(self, k: int | None, weigh: Weigh = UNIFORM) -> list[Ring]:
        """Return the rings that hold snapshots, and warn of tensors that have none.

        Raises:
            RuntimeError: the window is empty.
            ValueError: `k` is no number of snapshots that are held, or the weights do not fit them.
        """
        self.was_read = True
        held = self.window.num_snapshots
        if held == 0:
            every, live = self.schedule.every, 'averaged(if_empty="live") leaves the live weights'
            raise RuntimeError(
                f"the window is empty, for nothing has called collect(): call it first; {live}"
                if every == "manual"
                else f"the window is empty after {self.schedule.steps} steps with {every=}: train "
                f"on or collect() first; {live}"
            )
        whole = isinstance(k, int) and not isinstance(k, bool)
        if k is not None and not (whole and 1 <= k <= held):
            raise ValueError(f"k must be from 1 to the {held} snapshots held: {k!r}")
        tensors = self.tensors()
        buffers = tensors[len(self.parameters()) :]
        # A cache that has grown since is no statistic: it stays as it is.
        grown = self.window.reshaped(buffers)
        rings = self.window.readable([t for t in tensors if id(t) not in grown])
        complete = sum(len(ring.tensors) for ring in rings) == len(tensors)
        for ring in rings:
            weigh(ring.newest_steps(k))  # refused before anything is written
        if not complete or (self.buffers.modules and "coverage" not in self.said):
            self._say_what_stays_live(rings, buffers, grown)
        return rings

    def _say_what_stays_live(
        self, rings: list[Ring], buffers: list[Tensor], grown: set[int]
    ) -> None:
        """Warn of what is trained and has no snapshot, as far as that can be seen from here."""
        averaged = {id(tensor) for ring in rings for tensor in ring.tensors}
        for kind, tensors in (("parameters", self.parameters()), ("buffers", buffers)):
            missing = len({id(t) for t in tensors} - averaged - grown)
            if missing:
                self.say(
                    f"{missing} of the {kind} have no snapshot yet and stay live: they came after "
                    "the latest one, or a checkpoint was loaded that has none of them"
                )
        if self.buffers.modules and "coverage" not in self.said:
            self.said.add("coverage")
            coverage.warn_of_bare_optimizers(self.buffers.modules, averaged, self.base)

    def warn_of_half(self, swap: Swap, began: int) -> None:
        """Warn, once, where another LAWA of the model was not read beside a swap that has ended."""
        if self.buffers.modules and "half" not in self.said:
            self.said.add("half")
            averaged = set(map(id, swap.tensors))
            coverage.warn_of_half_averages(self.buffers.modules, averaged, self.base, began)

    def means(
        self, k: int | None, dtype: torch.dtype | None, weigh: Weigh = UNIFORM
    ) -> dict[int, Tensor]:
        """Return new tensors with the mean of each that the window holds, by the tensor's id.

        Complex ones and those that have no mean are of their own dtype.

        Raises:
            ValueError: a mean in this dtype would lose its fractions.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(
                f"dtype must be of floating-point means, such as torch.float32: got {dtype}"
            )
        means: dict[int, Tensor] = {}
        for ring in self.nonempty_rings(k, weigh):
            is_real = ring.averages and not ring.tensors[0].is_complex()
            outs = [torch.empty_like(t, dtype=dtype if is_real else None) for t in ring.tensors]
            ring.write_mean(outs, k, weigh)
            means.update((id(t), out.detach()) for t, out in zip(ring.tensors, outs, strict=True))
        return means

    def write(self, k: int | None, weigh: Weigh = UNIFORM) -> None:
        """Write the mean into the tensors themselves, for good."""
        rings = self.nonempty_rings(k, weigh)
        forget_derived(self.tensors())
        for ring in rings:
            ring.write_mean(ring.tensors, k, weigh)
