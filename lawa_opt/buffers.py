"""Which buffers are averaged beside the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Buffers:
    """The buffers of modules, looked up by name at each use, and tensors given as they are.

    `module.to()` puts new tensors in the place of a module's buffers, and so may a forward pass:
    a tensor that was given once is then no longer the module's.

    Of modules, the buffers that are saved (`persistent=True`) are taken. Those that a snapshot
    cannot be written back to (sparse ones, expanded ones) are constants, and left alone.

    Args:
        given: a module, modules, or tensors.

    Raises:
        TypeError: something else.
    """

    def __init__(self, given: nn.Module | Iterable[nn.Module] | Iterable[Tensor]) -> None:
        items = [given] if isinstance(given, nn.Module | Tensor) else list(given)
        for item in items:
            if not isinstance(item, nn.Module | Tensor):
                raise TypeError(
                    "buffers must be the model, modules, or tensors such as model.buffers(): got "
                    f"{type(item).__name__}"
                )
        self.modules = [item for item in items if isinstance(item, nn.Module)]
        self.tensors = [item for item in items if isinstance(item, Tensor)]
        self._known: dict[tuple[int, str], Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self.modules or self.tensors)

    def now(self) -> list[Tensor]:
        """Return the buffers that there are now, each once."""
        if not self.modules:
            return self.tensors
        return _each_once([*self.places().values(), *self.tensors])

    def places(self) -> dict[tuple[int, str], Tensor]:
        """Return the modules' buffers by the number of the module and their name in it."""
        return {
            (number, name): buffer
            for number, module in enumerate(self.modules)
            for name, buffer in saved_buffers(module)
        }

    def look_up(self) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Return the buffers that there are now, and those new since the last call.

        The latter are by the ids of those that they replace.
        """
        if not self.modules:
            return self.tensors, {}
        before, self._known = self._known, self.places()
        replaced = {
            id(before[place]): buffer
            for place, buffer in self._known.items()
            if place in before and before[place] is not buffer
        }
        return _each_once([*self._known.values(), *self.tensors]), replaced


def _each_once(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of each buffer that is saved and can be written to, once each."""
    seen: set[int] = set()
    for prefix, inner in module.named_modules():
        for name, buffer in inner._buffers.items():
            if buffer is None or id(buffer) in seen or name in inner._non_persistent_buffers_set:
                continue
            if can_be_written(buffer):
                seen.add(id(buffer))
                yield f"{prefix}.{name}" if prefix else name, buffer


def can_be_written(tensor: Tensor) -> bool:
    """Return whether each element of a tensor has a place of its own."""
    if tensor.layout != torch.strided:
        return False
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return not any(size > 1 and stride == 0 for size, stride in pairs)
