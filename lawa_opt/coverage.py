"""What of a model is in no window, and so is live where an average is asked for."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from lawa_opt.buffers import Buffers, saved_buffers
from lawa_opt.messages import few, warn
from lawa_opt.several import parts_of

# Weights that nobody trains have been written to a few times all the same, to initialise and to
# load them.
WRITES_WITHOUT_TRAINING = 20

MASTERS = (
    "Where the optimizer has copies (float32 master weights), average the model's own parameters: "
    "ModelWindow(model, k=5) and its collect(step)"
)
NOT_THE_MODELS = f"the optimizer has no parameter of this model: is it the one trained? {MASTERS}"


def refuse_unaveraged_parameters(
    model: nn.Module, held: Collection[int], own: Sequence[Optimizer]
) -> None:
    """Refuse a model that has parameters that are trained but not averaged.

    What is frozen, or trained by nobody, is the same live and averaged.

    Args:
        model: whose average is asked for.
        held: ids of the tensors that have snapshots.
        own: the optimizers that the average is of, as they are without LAWA.

    Raises:
        ValueError: naming the parameters, and what trains them.
    """
    missing = {
        name: parameter for name, parameter in model.named_parameters() if id(parameter) not in held
    }
    waiting = _trained_by(missing, own)
    if waiting:
        raise ValueError(
            f"{few(waiting)} were added to the optimizer after the latest snapshot and would be "
            "live beside averaged weights: train on until the next one, or call collect(), first"
        )
    missing = {name: parameter for name, parameter in missing.items() if parameter.requires_grad}
    if not missing:
        return
    _refuse_replaced_parameters(model, missing, own)
    for other, trained in _trained_by_others(missing, own):
        remedy = "pass others=[its LAWA]"
        if not hasattr(other, "window"):
            kinds = ", ".join(map(_kind, (*own, other)))
            remedy = f"wrap them in one, LAWA([{kinds}])"
        raise ValueError(
            f"{few(trained)} would be live beside averaged weights, for {_kind(other)} trains "
            f"them: {remedy}. If they are not trained any more, delete that optimizer, or freeze "
            "them by requires_grad_(False)"
        )
    written = [name for name, p in missing.items() if _writes(p) > _writes_in_training(own)]
    if written:
        warn(
            f"{few(written)} are live beside averaged weights: they are in no window, although "
            f"written to in mid-training, as copies of float32 master weights are. {MASTERS}. If "
            "they are not trained, freeze them by requires_grad_(False)"
        )


def warn_of_bare_optimizers(
    modules: Sequence[nn.Module], held: Collection[int], own: Optimizer
) -> None:
    """Warn of parameters of the modules that are trained by an optimizer without a LAWA."""
    for other, trained in _trained_by_others(_missing(modules, held), [own]):
        if not hasattr(other, "window"):
            warn(
                f"{few(trained)} stay live beside averaged weights, for {_kind(other)} trains "
                f"them and is in no LAWA: wrap them in one, LAWA([{_kind(own)}, {_kind(other)}])"
            )


def warn_of_half_averages(
    modules: Sequence[nn.Module], held: Collection[int], own: Optimizer, began: int
) -> None:
    """Warn of parameters of the modules whose own LAWA has not put its average in meanwhile.

    Args:
        modules: known to be of the model.
        held: ids of the tensors that were averaged.
        own: the optimizer whose average was in the model.
        began: when that was put in; see `Swaps`.
    """
    for other, trained in _trained_by_others(_missing(modules, held), [own]):
        swaps = getattr(other, "swaps", None)
        if swaps is not None and not swaps and swaps.ended < began:
            kinds = f"{_kind(own)}, {_kind(other)}"
            warn(
                f"{few(trained)} stayed live beside averaged weights, for the LAWA of "
                f"{_kind(other)} trains them, and its average was not in the model: wrap both in "
                f"one, LAWA([{kinds}]), or enter both"
            )


def _missing(modules: Sequence[nn.Module], held: Collection[int]) -> dict[str, Tensor]:
    """Return the parameters of modules that are trained and not among the held ones."""
    return {
        name: parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if id(parameter) not in held and parameter.requires_grad
    }


def _refuse_replaced_parameters(
    model: nn.Module, missing: Mapping[str, Tensor], own: Sequence[Optimizer]
) -> None:
    """Refuse a model that has other parameters now than those of its optimizer."""
    owned = set(map(id, model.parameters()))
    orphans = [p for p in _parameters(own) if id(p) not in owned]
    # A criterion's parameters are not the model's either; these are the very same, one by one.
    if [p.shape for p in orphans] != [p.shape for p in missing.values()]:
        return
    if [p.dtype for p in orphans] != [p.dtype for p in missing.values()]:
        raise ValueError(
            f"{few(list(missing))} would be live beside averaged weights, for the optimizer has "
            f"copies of them in another type. {MASTERS}"
        )
    raise ValueError(
        f"{few(list(missing))} of this model are other tensors than the optimizer has, as after "
        "load_state_dict(assign=True): build the optimizer and LAWA over the parameters that the "
        "model has now"
    )


def _trained_by_others(
    missing: Mapping[str, Tensor], own: Sequence[Optimizer]
) -> list[tuple[Optimizer, list[str]]]:
    """Return further optimizers of this process, and what each trains of the missing."""
    if not missing:
        return []
    mine = {id(each) for optimizer in own for each in (optimizer, *parts_of(optimizer))}
    others = [o for o in _optimizers() if id(getattr(o, "base", o)) not in mine]
    named = [(other, _trained_by(missing, [other])) for other in others]
    return [(other, names) for other, names in named if names]


def _optimizers() -> list[Optimizer]:
    """Return all optimizers of this process, LAWAs first: torch has no register of them."""
    found = [
        item
        for item in gc.get_objects()
        # Not isinstance, which asks proxies that imitate a class, and may wake them up.
        if issubclass(type(item), Optimizer) and hasattr(item, "param_groups")
    ]
    lawas = [item for item in found if hasattr(item, "window")]
    bases = [lawa.base for lawa in lawas if hasattr(lawa, "base")]
    wrapped = {id(each) for base in bases for each in (base, *parts_of(base))}
    return lawas + [
        item for item in found if not hasattr(item, "window") and id(item) not in wrapped
    ]


def _parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def _trained_by(parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> list[str]:
    """Return the names of those that these optimizers train."""
    trained = set(map(id, _parameters(optimizers)))
    return [name for name, parameter in parameters.items() if id(parameter) in trained]


def _kind(optimizer: Optimizer) -> str:
    kinds = [type(each).__name__ for each in parts_of(getattr(optimizer, "base", optimizer))]
    return " and ".join(kinds)


def _writes(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _writes_in_training(own: Sequence[Optimizer]) -> int:
    """Return how many writes to a tensor can hardly be but by training."""
    # Some optimizers write several times a step, and readings write too.
    return max(WRITES_WITHOUT_TRAINING, min((_writes(p) for p in _parameters(own)), default=0) // 4)


def unaveraged_statistics(
    model: nn.Module, held: Collection[int], own: Sequence[Optimizer]
) -> list[str]:
    """Return the names of statistics of a model that training changes and no window has."""
    # The base class of BatchNorm and InstanceNorm, whose statistics torch writes uncounted.
    norm: type[nn.Module] = nn.modules.batchnorm._NormBase
    counters = {
        f"{prefix}.{name}" if prefix else name: module.num_batches_tracked
        for prefix, module in model.named_modules()
        if isinstance(module, norm) and isinstance(module.num_batches_tracked, Tensor)
        for name, _ in module.named_buffers(recurse=False)
    }
    # Some modules put a new tensor in the place of theirs each time, which torch does not count.
    running = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, norm) and not type(module).__name__.startswith("Frozen")
        for name, _ in module.named_buffers(recurse=False)
        if name.startswith("running")
    }
    many = _writes_in_training(own)
    return [
        name
        for name, buffer in saved_buffers(model)
        if id(buffer) not in held
        and buffer.is_floating_point()
        # Making and loading it are three writes at the most.
        and (
            _writes(counters[name]) > 3
            if name in counters
            else name in running or _writes(buffer) > many
        )
    ]


def refuse_replaced_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Refuse buffers that were given as tensors and that the model has replaced since.

    Raises:
        ValueError: naming them.
    """
    owned = {id(buffer) for buffer in model.buffers()}
    orphans = [tensor.shape for tensor in buffers.tensors if id(tensor) not in owned]
    given = {id(tensor) for tensor in buffers.now()}
    left = [(name, b.shape) for name, b in model.named_buffers() if id(b) not in given]
    names = []
    for shape in orphans:  # each in its turn among those that are left
        while left and left[0][1] != shape:
            left.pop(0)
        if not left:
            return
        names.append(left.pop(0)[0])
    if names:
        raise ValueError(
            f"{few(names)} of this model are other tensors than the buffers given, as after "
            "model.to(): give LAWA the model itself, buffers=model"
        )


def refuse_masters(modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer that has copies of the parameters of the modules given as `buffers`.

    Raises:
        ValueError: none of its parameters is of the modules, and they have as many elements.
    """
    trained = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
    own = {id(parameter): parameter for parameter in parameters}
    elements = [sum(p.numel() for p in some.values()) for some in (trained, own)]
    if trained and not trained.keys() & own.keys() and elements[0] == elements[1]:
        raise ValueError(NOT_THE_MODELS)
