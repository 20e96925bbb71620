"""Fixed-budget comparisons of weight averaging with the fully decayed learning rate."""

import timing

# PyPI has another package called `timing`.
if not hasattr(timing, "Account"):
    raise ImportError(
        f"the `timing` found at {timing.__file__} is not lawa-opt's; uninstall the other package, "
        "or put lawa-opt before it on the path"
    )

from baselines.experiment.comparison import Plan, compare
from baselines.methods.averagers import Averager, NoAveraging
from baselines.methods.method import Method
from baselines.methods.settings import Range, Settings
from baselines.workloads import Workload

__all__ = [
    "Averager",
    "Method",
    "NoAveraging",
    "Plan",
    "Range",
    "Settings",
    "Workload",
    "compare",
]
