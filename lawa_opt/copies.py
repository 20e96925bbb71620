"""Copies of a model's state with averages in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def copied_entries(entries: Mapping[str, Any], means: dict[int, Tensor]) -> dict[str, Any]:
    """Return copies of a state dict's entries, tied ones too, with means where there are some.

    Args:
        entries: the tensors themselves, not detached.
        means: by the ids of the tensors; each is taken once, and later copied.
    """
    result: dict[str, Any] = {}
    firsts: dict[int, str] = {}
    for name, value in entries.items():
        mean = means.pop(id(value), None)
        if mean is None and isinstance(value, Tensor):
            first = firsts.get(id(value))
            source = value.detach() if first is None else result[first]
            mean = source.clone()
        firsts.setdefault(id(value), name)
        result[name] = copy.deepcopy(value) if mean is None else mean
    return result
