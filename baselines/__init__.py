"""Fixed-budget comparisons of weight averaging with the fully decayed learning rate."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.experiment.comparison import compare
    from baselines.experiment.plan import Plan
    from baselines.methods.averagers import Averager, AveragerPart
    from baselines.methods.method import Method
    from baselines.methods.part import Range
    from baselines.methods.recipes import Recipe, RecipePart, Step
    from baselines.methods.schedules import SchedulePart
    from baselines.workloads import Workload
    from timing import Operation

__all__ = [
    "Averager",
    "AveragerPart",
    "Method",
    "Operation",
    "Plan",
    "Range",
    "Recipe",
    "RecipePart",
    "SchedulePart",
    "Step",
    "Workload",
    "compare",
]

# PyPI has another package called `timing`.
_timing = find_spec("timing")
_found = Path(_timing.origin) if _timing and _timing.origin else None
if _found is None or not (_found.parent / "rst").is_dir():
    raise ImportError(
        f"the `timing` found at {_found} is not lawa-opt's; uninstall the other package, or put "
        "lawa-opt before it on the path"
    )

_MODULE_OF = {
    "Averager": "baselines.methods.averagers",
    "AveragerPart": "baselines.methods.averagers",
    "Method": "baselines.methods.method",
    "Operation": "timing",
    "Plan": "baselines.experiment.plan",
    "Range": "baselines.methods.part",
    "Recipe": "baselines.methods.recipes",
    "RecipePart": "baselines.methods.recipes",
    "SchedulePart": "baselines.methods.schedules",
    "Step": "baselines.methods.recipes",
    "Workload": "baselines.workloads",
    "compare": "baselines.experiment.comparison",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that a command speaks before torch is there."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'baselines' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
