"""LAWA in a Trainer of Transformers or TRL: `with_lawa(Trainer, k=5)(model, arguments, ...)`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from lawa_opt.optimizer import LAWA


def with_lawa(trainer: type[Trainer], *, buffers: bool = True, **options: Any) -> Any:
    """Return a subclass of a Trainer that wraps the optimizer that the Trainer makes.

    Its groups and arguments stay the Trainer's own, and so does the training, bit for bit.
    Evaluations and checkpoints have the average; the live weights are in a checkpoint's optimizer,
    and a resumed training goes on from them. After `train()` the model holds the average, or the
    best one with `load_best_model_at_end`, as a line says. As long as nothing is collected, all of
    these have the live weights.

    Args:
        trainer: `transformers.Trainer` or a subclass, such as `trl.SFTTrainer`.
        buffers: average the saved buffers of the model too, as BatchNorm's statistics.
        options: of `LAWA`, such as `k`, `every` and `dtype`.

    Raises:
        TypeError: it is no Trainer, or has LAWA already, or an option is none of LAWA's.
        ValueError: an option is out of its range. A Trainer under FSDP or DeepSpeed, or one that is
            given a LAWA, raises it when it trains.
    """
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise TypeError(
            f"with_lawa takes a class, Trainer or one made from it: got {trainer!r:.60}; give the "
            "model and arguments to what it returns"
        )
    if hasattr(trainer, "_lawa"):
        raise TypeError(
            f"{trainer.__name__} has LAWA already: give all options to one with_lawa(), over the "
            "Trainer as it was"
        )
    # Refuses what no LAWA takes now, and not after the data have been prepared.
    LAWA(torch.optim.SGD([torch.zeros(1)], lr=0.0), **options)

    # A type that is known at run time alone.
    class TrainerWithLAWA(trainer):  # type: ignore[misc, valid-type]
        _lawa: LAWA | None = None

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            made = super().create_optimizer(*args, **kwargs)
            # Prepared by Accelerate where it trains again.
            inside = getattr(made, "optimizer", made)
            if self._lawa is not None and inside is self._lawa:
                return made
            if self.is_fsdp_enabled:
                raise ValueError(
                    "with_lawa does not go with FSDP, whose checkpoints need the live weights in "
                    "the model: override create_optimizer of the Trainer to make self.optimizer a "
                    "LAWA of what it made, and call train() of that in a callback's on_evaluate"
                )
            if self.is_deepspeed_enabled:
                raise ValueError(
                    "with_lawa does not go with DeepSpeed, whose engine steps: keep a "
                    "ModelWindow(model), and collect(step) in a callback's on_step_end"
                )
            if isinstance(inside, LAWA):
                raise ValueError(
                    "the optimizer is a LAWA already, and with_lawa would wrap it once more: give "
                    "the Trainer the optimizer inside it, or take the Trainer as it is"
                )
            self._lawa = LAWA(made, **options, buffers=self.model if buffers else ())
            self.optimizer = self._lawa
            return self.optimizer

        def train(self, *args: Any, **kwargs: Any) -> Any:
            result = super().train(*args, **kwargs)
            self._put_in()
            if self.is_world_process_zero():
                print(f"LAWA: the model holds {self._held()}")
            return result

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            self._put_in()
            super()._save_checkpoint(*args, **kwargs)

        def _load_best_model(self) -> None:
            # In the place of the average: so it stays in the model when that is evaluated.
            self._put_in()
            super()._load_best_model()

        def _put_in(self) -> None:
            if self._lawa is not None and self._lawa.num_snapshots:
                self._lawa.eval()

        def _held(self) -> str:
            if self._lawa is None or not self._lawa.num_snapshots:
                return "the live weights, for no snapshot was collected"
            best = self.state.best_model_checkpoint
            if self.args.load_best_model_at_end and best is not None:
                return f"the weights of the best checkpoint, {best}"
            return f"the average of the {self._lawa.num_snapshots} latest snapshots"

    TrainerWithLAWA.__name__ = TrainerWithLAWA.__qualname__ = f"{trainer.__name__}WithLAWA"
    return TrainerWithLAWA
