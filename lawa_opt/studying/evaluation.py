"""Evaluations: a user's function, called with weights, and what it may return."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lawa_opt.messages import ArgumentError

# A metric, on the evaluations to choose by and on those to report; the same twice if there is one.
Halves = tuple[float, float]


class Evaluation:
    """Calls a function with a state dict, or with a model that has it, and checks what it returns.

    Args:
        function: returns a metric, or a dict of them by name. Each may be a pair, of two halves of
            the evaluations: windows are chosen by the first, and the second is reported.
        make: returns the model, is called once; by default the function takes the state dict.
        digest: tells that the function has changed since evaluations were kept.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        make: Callable[[], nn.Module] | None = None,
        digest: str = "",
    ) -> None:
        self.function = function
        self.make = make
        self.digest = digest
        self.model: nn.Module | None = None

    def __call__(self, state: dict[str, Any]) -> dict[str, Halves]:
        """Return the metrics by name.

        Raises:
            ValueError: the function returned something else. What it raises itself is passed on.
        """
        if self.make is None:
            return metrics_of(self.function(state))
        if self.model is None:
            self.model = self.make()
        self.model.load_state_dict(state)
        return metrics_of(self.function(self.model))


def metrics_of(returned: Any) -> dict[str, Halves]:
    """Return what an evaluation returned as pairs by name, "metric" where it has no name.

    Raises:
        ValueError: it is no number, no pair of numbers and no dict of such.
    """
    named = returned if isinstance(returned, Mapping) else {"metric": returned}
    found: dict[str, Halves] = {}
    for name, value in named.items():
        pair = value if isinstance(value, list | tuple) else (value, value)
        if len(pair) != 2 or not all(map(_is_number, pair)):
            raise ValueError(
                "the function must return a number, a pair of numbers (two halves of the "
                f"evaluations) or a dict of such: {name!r} is {value!r:.60}"
            )
        first, second = (each.detach() if isinstance(each, Tensor) else each for each in pair)
        found[str(name)] = (float(first), float(second))
    if not found:
        raise ValueError("the function returned no metric")
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str | bytes | bool)


def load_function(named: str) -> tuple[Callable[..., Any], str]:
    """Run the file in FILE.py:FUNCTION, and return the function and the file's SHA-256.

    Raises:
        ArgumentError: there is no such file or function, or the file raises something.
    """
    path, _, name = named.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ArgumentError(f"give a function of a Python file, as FILE.py:FUNCTION: {named!r}")
    file = Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror}") from error
    spec = importlib.util.spec_from_file_location(f"study_of_{file.stem}", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle look a class's module up there. And a file finds what
    # lies beside it, as where Python runs it.
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"{path} cannot be run: {one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ArgumentError(f"{path} has no function {name!r}")
    return function, hashlib.sha256(text).hexdigest()


def one_line(error: BaseException) -> str:
    """Return an exception's type, text and the line of the innermost call, in one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
