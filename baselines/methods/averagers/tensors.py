"""Save and load the tensors of an averaged model, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, also those that a state dict of the model leaves out."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def load_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the model's own.

    Raises:
        ValueError: they have other names, shapes or dtypes; nothing has been changed.
    """
    own = tensors_of(model)
    for name in own.keys() | saved.keys():
        for_saved, for_own = (
            f"{tuple(part[name].shape)} {part[name].dtype}" if name in part else "none"
            for part in (saved, own)
        )
        if for_saved != for_own:
            raise ValueError(
                f"the saved average has {for_saved} for {name} and this model {for_own}: it was "
                "saved with another model"
            )
    for name, tensor in own.items():
        tensor.copy_(saved[name])
