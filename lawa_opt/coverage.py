"""What of a model is in no window, and so is live where an average is asked for."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from lawa_opt.buffers import Buffers

# Weights that nobody trains have been written to a few times all the same, to initialise and to
# load them.
WRITES_WITHOUT_TRAINING = 20


def refuse_unaveraged_parameters(
    model: nn.Module, held: Collection[int], own: Sequence[Optimizer], steps: int
) -> None:
    """Refuse a model that has parameters that are trained but not averaged.

    What is frozen, or trained by nobody, is the same live and averaged.

    Args:
        model: whose average is asked for.
        held: ids of the tensors that have snapshots.
        own: the LAWAs that are asked, whose wrapped optimizers' parameters are collected.
        steps: of training so far.

    Raises:
        ValueError: naming the parameters, and what trains them.
    """
    missing = {
        name: parameter for name, parameter in model.named_parameters() if id(parameter) not in held
    }
    waiting = _names(missing, own)
    if waiting:
        raise ValueError(
            f"{few(waiting)} came into the optimizer after the latest snapshot and would be live "
            "beside averaged weights: train on until the next one, or call collect(), first"
        )
    missing = {name: parameter for name, parameter in missing.items() if parameter.requires_grad}
    if not missing:
        return
    owned = set(map(id, model.parameters()))
    orphans = {
        parameter.shape
        for lawa in own
        for group in lawa.param_groups
        for parameter in group["params"]
        if id(parameter) not in owned
    }
    replaced = [name for name, parameter in missing.items() if parameter.shape in orphans]
    if replaced:
        raise ValueError(
            f"{few(replaced)} of this model are other tensors than the optimizer has, as after "
            "load_state_dict(assign=True): build the optimizer and LAWA over the parameters that "
            "the model has now"
        )
    bases = [lawa.base for lawa in own if hasattr(lawa, "base")]
    for other in _optimizers():
        if any(other is known for known in (*own, *bases)):
            continue
        trained = _names(missing, [other])
        if trained:
            kind = type(getattr(other, "base", other)).__name__
            remedy = "pass others=[its LAWA]"
            if not hasattr(other, "window"):
                remedy = "wrap it in a LAWA too, and pass others=[that LAWA]"
            raise ValueError(
                f"{few(trained)} would be live beside averaged weights, for {kind} trains them: "
                f"{remedy}; or freeze them by requires_grad_(False) if they are not trained any "
                "more"
            )
    written = [
        name
        for name, parameter in missing.items()
        if not parameter.is_inference() and parameter._version > max(WRITES_WITHOUT_TRAINING, steps)
    ]
    if written:
        warnings.warn(
            f"{few(written)} are live beside averaged weights: they are in no window, although "
            f"written to in mid-training (such as copies of float32 master weights are). Average "
            "them by a LAWA over an optimizer of the model's own parameters, or freeze them by "
            "requires_grad_(False) if they are not trained",
            stacklevel=3,
        )


def _names(parameters: dict[str, Any], optimizers: Iterable[Optimizer]) -> list[str]:
    """Return the names of those that these optimizers train."""
    trained = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [name for name, parameter in parameters.items() if id(parameter) in trained]


def _optimizers() -> list[Optimizer]:
    """Return all optimizers of this process, outer ones first: torch has no register of them."""
    found = [
        item
        for item in gc.get_objects()
        # Not isinstance, which asks proxies that imitate a class, and may wake them up.
        if issubclass(type(item), Optimizer) and hasattr(item, "param_groups")
    ]
    return sorted(found, key=lambda item: not hasattr(item, "window"))


def unaveraged_statistics(model: nn.Module, held: Collection[int], steps: int) -> list[str]:
    """Return the names of running statistics of a model that are in no window."""
    # The base class of BatchNorm and InstanceNorm.
    norm: type[nn.Module] = nn.modules.batchnorm._NormBase
    kept = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, norm)
        for name, _ in module.named_buffers(recurse=False)
    }
    return [
        name
        for name, buffer in model.named_buffers()
        if id(buffer) not in held
        and buffer.is_floating_point()
        and not buffer.is_inference()
        and (
            name in kept
            or "running" in name
            or buffer._version > max(WRITES_WITHOUT_TRAINING, steps)
        )
    ]


def refuse_replaced_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Refuse buffers that were given as tensors and that the model has replaced since.

    Raises:
        ValueError: naming them.
    """
    owned = {id(buffer) for buffer in model.buffers()}
    orphans = [tensor for tensor in buffers.tensors if id(tensor) not in owned]
    given = {id(tensor) for tensor in buffers.now()}
    names = [
        name
        for name, buffer in model.named_buffers()
        if id(buffer) not in given and any(buffer.shape == orphan.shape for orphan in orphans)
    ]
    if orphans and names:
        raise ValueError(
            f"{few(names)} of this model are other tensors than the buffers given, as after "
            "model.to(): give LAWA the model itself, buffers=model"
        )


def refuse_masters(modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer that has none of the parameters of the modules given as `buffers`.

    Raises:
        ValueError: it has copies of them, then, or is of another model.
    """
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    own = {id(parameter) for parameter in parameters}
    if trained and not any(id(parameter) in own for parameter in trained):
        raise ValueError(NOT_THE_MODELS)


NOT_THE_MODELS = (
    "the optimizer has no parameter of this model: is it the one trained? Where the optimizer has "
    "copies (float32 master weights), average by a LAWA over an optimizer of the model's own "
    'parameters that is never stepped: LAWA(SGD(model.parameters()), every="manual") and collect()'
)


def few(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
