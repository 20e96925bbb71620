"""Round the weights of a copy of a model, as a quantised model would have them.

Symmetric, to nearest, ties to even: a row of a weight, or a group of consecutive values in it, has
one scale s = max|w| / (2^(bits-1) - 1), and each of its values becomes s · round(w / s).
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from baselines.training import with_torchao

FLOAT = "float"
MIN_BITS, MAX_BITS = 2, 16
# Of a scale, as files of quantised weights have it: a float16.
SCALE_BITS = 16

# What computes a weight before each forward pass, and what makes it plain.
_COMPUTED_BY: tuple[tuple[type, str], ...] = (
    (SpectralNorm, "remove_spectral_norm"),
    (WeightNorm, "remove_weight_norm"),
    (prune.BasePruningMethod, "prune.remove"),
)

_NAME = re.compile(
    r"(?P<library>torchao:)?int(?P<bits>\d{1,9})(g(?P<group>\d{1,9}))?(?P<body>-body)?", re.ASCII
)
_ALLOWED = (
    f"float, intN of {MIN_BITS} to {MAX_BITS} bits such as int8, int4g32 with a scale for each 32 "
    "values of a row, int4-body without embeddings and head, torchao:int4 as torchao rounds"
)


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded.

    Attributes:
        name: the one way to write it, such as "int4g32".
        bits: of a rounded value, its sign included.
        group: consecutive values of a row that share a scale; None where the whole row does.
        library: "torchao" where that rounds, by its own rule; "" where this module does.
        body: embeddings and the head are left as they are.
    """

    name: str
    bits: int
    group: int | None = None
    library: str = ""
    body: bool = False


@dataclass(frozen=True)
class Rounded:
    """What a rounding does to a model.

    Attributes:
        rounding: its name.
        parameters: how many are rounded, of how many; tied ones are one.
        values: in the rounded ones, and in all.
        bits_per_weight: of a rounded value, with its share of the scales at 16 bits each.
        relative_error: ||w - rounded w|| / ||w|| over all rounded values; 0 where all are zero.
        short_rows: rows whose last group is shorter than the others.
        is_by_row: a group was asked for, and no row is longer.
        left: matrices that stay as they are, by name.
    """

    rounding: str
    parameters: tuple[int, int]
    values: tuple[int, int]
    bits_per_weight: float
    relative_error: float
    short_rows: int
    left: tuple[str, ...]
    is_by_row: bool = False

    def __str__(self) -> str:
        """Return it in a line."""
        said = (
            f"{self.rounding}: {self.parameters[0]} of {self.parameters[1]} parameters rounded, "
            f"{self.values[0]:,} of {self.values[1]:,} values, {self.bits_per_weight:.3g} bits "
            f"each with {SCALE_BITS} for a scale"
        )
        short = f"; in {self.short_rows:,} rows the last group is shorter"
        said += short if self.short_rows else ""
        said += "; no row is longer than a group, so a scale a row" if self.is_by_row else ""
        if self.left:
            more = f" and {len(self.left) - 4} more" if len(self.left) > 4 else ""
            said += f"; left as they are: {', '.join(self.left[:4])}{more}"
        return said


def parse(name: str) -> Rounding:
    """Return the rounding of a name such as "int8", "int4g32", "int3-body" or "torchao:int4".

    Raises:
        ValueError: it is none, in one line.
    """
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise ValueError(f"{name!r:.60} is no reading of weights: give {_ALLOWED}")
    bits, group = int(match["bits"]), int(match["group"]) if match["group"] else None
    most = with_torchao.MAX_BITS if match["library"] else MAX_BITS
    if not MIN_BITS <= bits <= most:
        raise ValueError(
            f"{name!r:.60} cannot be read: give {MIN_BITS} to {most} bits"
            f"{' of torchao' if match['library'] else ''}"
        )
    if group == 0:
        raise ValueError(
            f"{name!r:.60} cannot be read: a group has at least 1 value, such as in int{bits}g32"
        )
    library, body = (match["library"] or "").removesuffix(":"), bool(match["body"])
    canonical = f"{match['library'] or ''}int{bits}{f'g{group}' if group else ''}"
    return Rounding(canonical + "-body" * body, bits, group, library, body)


def parse_readings(names: str) -> tuple[str, ...]:
    """Return the readings in a list such as "float,int8,int4"; float is always read, and first.

    Raises:
        ValueError: one is none, or comes twice; in one line.
    """
    given = [name.strip() for name in names.split(",")]
    found = [name if name == FLOAT else parse(name).name for name in given]
    if twice := [name for name in found if found.count(name) > 1]:
        raise ValueError(f"{names!r:.60} reads {twice[0]} twice: give each reading once")
    return (FLOAT, *(name for name in found if name != FLOAT))


def check(model: nn.Module, rounding: Rounding) -> None:
    """Refuse a model whose weights cannot be rounded so.

    Raises:
        ValueError: it cannot, in one line.
    """
    cannot = f"{rounding.name} cannot be read: "
    for name, module in model.named_modules():
        if remedy := _makes_plain(module):
            raise ValueError(
                f"{cannot}weights of {name or 'the model'} are computed from other parameters, "
                "and to round those is not to round what is used: "
                f"torch.nn.utils.{remedy} makes them plain"
            )
    for name, parameter in model.named_parameters():
        plain = type(parameter) is nn.Parameter
        if not plain or parameter.layout is not torch.strided:
            raise ValueError(
                f"{cannot}{name} is of {parameter.layout if plain else type(parameter).__name__}, "
                "and only plain tensors, whole on this process, can be rounded"
            )
    weights = chosen(model, rounding)
    if not weights:
        which = " besides what it leaves" if matrices(model) else ""
        raise ValueError(
            f"{cannot}the model has no parameter of two or more dimensions{which} to round"
        )
    for name, weight in weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            remedy = (
                "read float alone"
                if weight.is_complex()
                else "train float32 weights, under torch.autocast to stay as fast"
            )
            raise ValueError(
                f"{cannot}{name} is {str(weight.dtype).removeprefix('torch.')}, and weights are "
                f"rounded from float32 or float64: {remedy}"
            )
    if rounding.library:
        with_torchao.check(weights, rounding.group, rounding.name)
    _copied(model, rounding)


def _makes_plain(module: nn.Module) -> str:
    """Return what makes computed weights of a module plain, and "" where none is computed."""
    if parametrize.is_parametrized(module):
        return "parametrize.remove_parametrizations"
    hooks = module._forward_pre_hooks.values()
    return next((by for kind, by in _COMPUTED_BY if any(isinstance(h, kind) for h in hooks)), "")


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what can be rounded, by its first name: parameters of two or more dimensions."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and parameter.numel()
    }


def chosen(model: nn.Module, rounding: Rounding) -> dict[str, nn.Parameter]:
    """Return the parameters that are rounded, by their first name; tied ones once.

    All of two or more dimensions. With `body`, but for the weights of embeddings, what is tied to
    them, and the head: the last such parameter of the model. With torchao, of these only
    those of nn.Linear alone.
    """
    found = matrices(model)
    left = with_torchao.left_out(model) if rounding.library else set()
    if rounding.body and found:
        named = model.named_parameters(remove_duplicate=False)
        left.add([id(each) for _, each in named if each.dim() > 1 and each.numel()][-1])
        for module in model.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                left.add(id(module.weight))
    return {name: parameter for name, parameter in found.items() if id(parameter) not in left}


def rounded(model: nn.Module, rounding: Rounding) -> nn.Module:
    """Return a copy of a model with its weights rounded; the model itself stays as it is.

    A row or group with an infinite or undefined weight becomes undefined as a whole.

    Raises:
        ValueError: the model cannot be copied.
    """
    made = _copied(model, rounding)
    with torch.no_grad():
        for weight in chosen(made, rounding).values():
            weight.copy_(_rounded_values(weight, rounding))
    return made


@torch.no_grad()
def round_values(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Return a weight rounded, of the same shape and dtype.

    In float64 between, so that float32 values that are rounded once more stay the same bit for bit.

    Args:
        weight: (rows, ...), float32 or float64; all that follows the first dimension is one row.
        bits: of a rounded value.
        group: consecutive values of a row that share a scale, the last ones fewer; None for all.
    """
    rows = weight.detach().double().flatten(1)
    width = rows.shape[1]
    length = min(group or width, width)
    parts = F.pad(rows, (0, -width % length)).unflatten(1, (-1, length))
    scale = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    # Zeros stay zeros: no 0 / 0.
    scale = torch.where(scale == 0, 1.0, scale)
    whole = (parts / scale).round() * scale
    found: Tensor = whole.flatten(1)[:, :width].reshape(weight.shape).to(weight.dtype)
    return found


def what_is_rounded(model: nn.Module, rounding: Rounding) -> Rounded:
    """Return what a rounding does to a model, as it is now.

    Raises:
        ValueError: as `check`.
    """
    check(model, rounding)
    weights = chosen(model, rounding)
    values = sum(weight.numel() for weight in weights.values())
    scales, short_rows, squares, off = 0, 0, 0.0, 0.0
    for weight in weights.values():
        rows, width = len(weight), weight[0].numel()
        length = min(rounding.group or width, width)
        scales += rows * math.ceil(width / length)
        short_rows += rows if width % length else 0
        exact = weight.detach().double()
        squares += float(exact.square().sum())
        off += float((exact - _rounded_values(weight, rounding)).square().sum())
    return Rounded(
        rounding=rounding.name,
        parameters=(len(weights), len(list(model.parameters()))),
        values=(values, sum(parameter.numel() for parameter in model.parameters())),
        bits_per_weight=rounding.bits + SCALE_BITS * scales / values,
        relative_error=math.sqrt(off / squares) if squares else 0.0,
        short_rows=short_rows,
        left=tuple(name for name in matrices(model) if name not in weights),
        is_by_row=rounding.group is not None and scales == sum(map(len, weights.values())),
    )


def _rounded_values(weight: Tensor, rounding: Rounding) -> Tensor:
    by = with_torchao.round_values if rounding.library else round_values
    return by(weight, rounding.bits, rounding.group)


def _copied(model: nn.Module, rounding: Rounding) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{rounding.name} cannot be read: copy.deepcopy cannot copy the model "
            f"({type(error).__name__}: {why})"
        ) from error
