"""What a torch file may hold beside tensors: plain data, rebuilt without a call into its library.

`torch.load` looks a class up by name in such a list. numpy's own functions take any bytes as
pointers if the file says that they are objects, so stand-ins with checks are given in their place.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any


class _Dtype:
    """numpy's dtype of plain numbers or text, known by its code."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = state[1] + self.code

    def read(self, data: bytes) -> Any:
        import numpy

        if not re.fullmatch(r"[<>|=]?[?biufcSU]\d*", self.code):
            raise ValueError(f"it holds numpy's {self.code!r:.20}: only numbers and text are read")
        return numpy.frombuffer(data, self.code)


class _Array:
    """numpy's array, which is one again when it is pickled."""

    def __init__(self, *_: object) -> None:
        self.array: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_column, data = state
        self.array = dtype.read(data).reshape(shape, order="F" if by_column else "C")

    def __reduce__(self) -> Any:
        return self.array.__reduce__()


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    (value,) = dtype.read(data)
    return value


def _no_bytes() -> bytes:
    return b""


_POSIX = os.name == "posix"
# A path of the other kind of system cannot be made here, only its pure twin.
_PATHS = {
    "PosixPath": pathlib.PosixPath if _POSIX else pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath if _POSIX else pathlib.WindowsPath,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
_CORES = ("numpy._core.multiarray", "numpy.core.multiarray")
# Pairs, as torch.serialization.safe_globals takes them; Python 3.13 has paths in pathlib._local.
PLAIN: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    *((kind, f"pathlib.{name}") for name, kind in _PATHS.items()),
    *((kind, f"pathlib._local.{name}") for name, kind in _PATHS.items()),
    *((_scalar, f"{core}.scalar") for core in _CORES),
    *((_Array, f"{core}._reconstruct") for core in _CORES),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),  # what torch's pickles have for bytes of no length
]


def configs_among(names: Iterable[str]) -> list[Any]:
    """Return the classes of OmegaConf's configs, if a file names one and OmegaConf is installed.

    They are its own: what they hold is data, and is resolved only when somebody asks for it.
    """
    if find_spec("omegaconf") is None or not any(name.startswith("omegaconf.") for name in names):
        return []
    from omegaconf import DictConfig, ListConfig, base, nodes

    kinds = ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")
    held = [getattr(nodes, f"{kind}Node") for kind in kinds]
    plain = [Any, bool, bytes, defaultdict, dict, float, int, list, str]
    return [DictConfig, ListConfig, base.ContainerMetadata, base.Metadata, *held, *plain]
