"""The wrapped optimizer: what may be one, and what of it can be made again."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lawa_opt.several import Several, parts_of


def wrapped(given: Any) -> Any:
    """Return the optimizer that a LAWA wraps: the given one, or one that stands for several.

    Raises:
        TypeError: one is no optimizer, or is a LAWA already.
        ValueError: two of several have the same parameter.
    """
    if not isinstance(given, list | tuple):
        _refuse_other_than_optimizers(given)
        return given
    for each in given:
        _refuse_other_than_optimizers(each)
    return Several(given)


def _refuse_other_than_optimizers(given: Any) -> None:
    """Refuse what is no optimizer to wrap.

    Raises:
        TypeError: it is none, or is a LAWA already.
    """
    if isinstance(given, Optimizer) and hasattr(given, "window"):
        raise TypeError("this is a LAWA already: read a shorter window by averaged(k=j)")
    if not (hasattr(given, "param_groups") and callable(getattr(given, "step", None))):
        raise TypeError(
            "LAWA wraps an optimizer, such as torch.optim.SGD(model.parameters(), lr=0.1), or a "
            "list of them: got "
            f"{type(given).__name__}"
        )


def refuse_lasting_state(base: Optimizer) -> None:
    """Refuse an optimizer that would not make its state again once that is forgotten.

    Raises:
        TypeError: it makes it when it is built.
    """
    if any(isinstance(each, torch.optim.Adagrad) for each in parts_of(base)):
        raise TypeError(
            "Adagrad makes its state when it is built and not again: restart without "
            "reset_state and set its state yourself"
        )
