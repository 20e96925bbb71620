"""A workload by its name, or from a Python file of the user's own."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from baselines.external import digest_of, one_line_errors, run_file
from baselines.workloads.base import Workload, WorkloadError

# A name is that of a file beside this one, and after a "-" the size that its `load` is given.
NAMES = {
    "pydocs": "a byte-level transformer on CPython's language reference",
    "digits": "a small convolutional net on scikit-learn's images",
    "text": "the transformer on the bytes of --data",
    "gpt-mini": "GPT-2's decoder of 4 layers on the byte pairs of --data",
    "gpt-small": "of 12 layers",
    "gpt-medium": "of 24 layers",
    "roberta": "masked words in --data, or in WikiText-103 from the hub",
    "roberta-mini": "of 4 layers",
    "cifar10": "ResNet-20 on the class folders of --data",
    "imagenet": "ResNet-50 on the class folders of --data",
}


def load(name_or_path: str, data: Path | None = None) -> Workload:
    """Return the workload of this name, or that `load` of this Python file returns.

    A file defines `load() -> Workload`, or `load(data: Path)` where it needs `--data PATH`, or
    `load(data: Path | None = None)` where it can do without. Its own digest is added to the
    workload's `data`, so that a comparison does not go on with another file of the same name.

    Args:
        name_or_path: one of NAMES, or a path that ends in ".py".
        data: handed to `load`.

    Raises:
        WorkloadError: what is wrong, in one line.
    """
    source = (name_or_path, None if data is None else str(data))
    if not name_or_path.endswith(".py"):
        return dataclasses.replace(_named(name_or_path, data), source=source)
    path = Path(name_or_path)
    digest = digest_of(path, WorkloadError)
    with one_line_errors(path, WorkloadError):
        load_file = getattr(run_file(path), "load", None)
        if not callable(load_file):
            raise WorkloadError(f"{path} defines no function `load`, which must return a Workload")
        workload = _call(load_file, str(path), data)
    code = {"file": path.name, "file_sha256": digest}
    return dataclasses.replace(workload, data={**workload.data, **code}, source=source)


def _named(name: str, data: Path | None) -> Workload:
    if name not in NAMES:
        raise WorkloadError(f"{name!r} is none of {', '.join(NAMES)}, nor a path to a .py file")
    module, _, size = name.partition("-")
    found = importlib.import_module(f"baselines.workloads.{module}")
    return _call(found.load, name, data, **({"size": size} if size else {}))


def _call(load: Callable[..., object], name: str, data: Path | None, **size: str) -> Workload:
    """Call `load` with what it takes."""
    parameters = inspect.signature(load).parameters
    others = [p.name for p in parameters.values() if p.name != "data" and p.default is p.empty]
    if others:
        raise WorkloadError(
            f"{name}: load must take no argument but `data`; it takes {', '.join(others)}"
        )
    parameter = parameters.get("data")
    if parameter is None and data is not None:
        raise WorkloadError(f"workload {name} takes no --data PATH; it was given {data}")
    if parameter is not None and parameter.default is parameter.empty and data is None:
        raise WorkloadError(f"workload {name} needs --data PATH")
    given = size if parameter is None else {"data": data, **size}
    workload = load(**given)
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"load() of {name} must return a baselines.workloads.Workload; it returned a "
            f"{type(workload).__name__}"
        )
    return workload
