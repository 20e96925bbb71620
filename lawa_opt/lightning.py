"""LAWA in Lightning: `Trainer(callbacks=[LAWACallback(k=5)])`, and nothing else changes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.optim import Optimizer

from lawa_opt.messages import warn
from lawa_opt.optimizer import LAWA
from lawa_opt.schedule import Every

# Of a checkpoint: the weights that training goes on from, where its `state_dict` is the average.
LIVE_WEIGHTS = "lawa_live_state_dict"


class Wrapped(LAWA):
    """A LAWA that `LearningRateMonitor` looks through, as it does for DeepSpeed's, by this name."""

    @property
    def optimizer(self) -> Optimizer:
        """Return the one inside, which gives the curves their names, with schedulers or without."""
        return self.base


class LAWACallback(Callback):
    """Wraps the optimizers of a fit, and has the average in the model wherever it is read.

    Validation, the checkpoints of the fit and the model after it have the average; training goes on
    from the live weights, bit for bit as without this callback. `trainer.fit(ckpt_path=...)` goes
    on as if there had been no end; `load_from_checkpoint` and `trainer.test` take the average. As
    long as nothing is collected, all of these have the live weights.

    Args:
        k: snapshots in the window.
        every: steps between two collects, "auto", or "manual" (see `CollectSchedule`).
        horizon: the share of the training so far that an "auto" window reaches back.
        start: the first step that may be collected.
        buffers: average the saved buffers of the model too, as BatchNorm's statistics.
        dtype: floating-point type of the snapshots; by default, the parameters' own.
        device: of the snapshots; by default, the parameters' own.
        cache: as in `LAWA`: keep the mean, for a checkpoint after a validation.

    Attributes:
        optimizers: the wrapped ones, of the latest fit.
    """

    def __init__(
        self,
        k: int = 5,
        every: Every = "auto",
        *,
        horizon: float = 0.1,
        start: int = 1,
        buffers: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        cache: bool = False,
    ) -> None:
        self.options: dict[str, Any] = {
            "k": k, "every": every, "horizon": horizon, "start": start,
            "dtype": dtype, "device": device, "cache": cache,
        }  # fmt: skip
        self.buffers = buffers
        self.optimizers: list[Wrapped] = []
        # Refuses what no LAWA takes now, and not after the data have been prepared.
        LAWA(torch.optim.SGD([torch.zeros(1)], lr=0.0), **self.options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Put back what an earlier fit left, before a checkpoint is loaded over it."""
        if stage == "fit":
            self._take_out()
            self.optimizers = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the configured optimizers; schedulers keep the ones inside, and the names of these.

        Raises:
            ValueError: an optimizer is a LAWA already, or does not step itself.
        """
        strategy = trainer.strategy
        for optimizer in strategy.optimizers:
            if isinstance(optimizer, LAWA):
                raise ValueError(
                    "configure_optimizers() returns a LAWA, and LAWACallback would wrap it once "
                    "more: return the optimizer inside it"
                )
            if not isinstance(optimizer, Optimizer) or "DeepSpeed" in type(strategy).__name__:
                raise ValueError(
                    f"LAWACallback wraps optimizers of torch that step themselves: "
                    f"{type(optimizer).__name__} under {type(strategy).__name__} does not"
                )
        self.optimizers = [
            # Buffers are of the model: one window holds them.
            Wrapped(base, **self.options, buffers=pl_module if self.buffers and not number else ())
            for number, base in enumerate(strategy.optimizers)
        ]
        for opt in self.optimizers:
            opt.average.was_read = (
                True  # it will be, so that nothing is said of a checkpoint before
            )
        strategy.optimizers = list(self.optimizers)
        for checkpoints in trainer.checkpoint_callbacks:
            steps = getattr(checkpoints, "_every_n_train_steps", 0)
            interval = getattr(checkpoints, "_train_time_interval", None)
            if getattr(checkpoints, "save_weights_only", False) and (steps or interval):
                warn(
                    "ModelCheckpoint(save_weights_only=True) between validations saves the live "
                    "weights, since Lightning asks no callback then: leave save_weights_only out, "
                    "or save after validation"
                )

    def on_validation_start(self, *_: Any) -> None:
        """Put the average into the model, until training goes on."""
        self._put_in()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Put the live weights back, for hooks of the model that change or read them here."""
        self._take_out()

    def on_train_batch_start(self, *_: Any) -> None:
        """Put the live weights back."""
        self._take_out()

    def on_train_end(self, *_: Any) -> None:
        """Leave the average in the model, and say so."""
        self._put_in()
        if any(opt.swaps for opt in self.optimizers):
            held = max(opt.num_snapshots for opt in self.optimizers)
            rank_zero_info(
                f"LAWACallback: the model holds the average of the {held} latest snapshots. "
                "Another fit goes on from the live weights."
            )
        else:
            warn("LAWACallback: no snapshot was collected, so the model holds the live weights")

    def on_exception(self, *_: Any) -> None:
        """Put the live weights back, where it comes in a validation, as it does in training."""
        self._take_out()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have the average in a checkpoint taken while the live weights are in the model."""
        filled = [opt for opt in self.optimizers if opt.num_snapshots]
        if not filled or any(opt.swaps for opt in filled):
            return
        live = checkpoint["state_dict"]
        first, *others = filled
        means = first.averaged_state_dict(pl_module, others=others)
        if means.keys() != live.keys():
            raise ValueError(
                f"a checkpoint under {type(trainer.strategy).__name__} between validations cannot "
                "hold the average, for its weights have other names than the model's: save after "
                "validation"
            )
        checkpoint[LIVE_WEIGHTS] = live
        checkpoint["state_dict"] = means

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the live weights, where those of the checkpoint are an average."""
        if LIVE_WEIGHTS in checkpoint and trainer.state.fn == "fit":
            pl_module.load_state_dict(checkpoint[LIVE_WEIGHTS])

    def state_dict(self) -> dict[str, Any]:
        """Return the size of the window, so that Lightning asks for this callback at a resume."""
        return {"num_snapshots": max((opt.num_snapshots for opt in self.optimizers), default=0)}

    def _put_in(self) -> None:
        for opt in self.optimizers:
            if opt.num_snapshots:
                opt.eval()

    def _take_out(self) -> None:
        for opt in self.optimizers:
            opt.train()
