"""Fixed-budget comparisons of weight averaging with the fully decayed learning rate."""

import timing

# PyPI has another package called `timing`.
if not hasattr(timing, "Account"):
    raise ImportError(
        f"the `timing` found at {timing.__file__} is not lawa-opt's; uninstall the other package, "
        "or put lawa-opt before it on the path"
    )

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
