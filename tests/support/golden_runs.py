"""One small comparison and one ablation of digits, whose figures are kept beside this file.

Steps, operations and reference seconds are the same on any machine; metrics only on one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baselines.experiment.ablation import WindowConfig, methods_of
from baselines.experiment.comparison import compare
from baselines.experiment.plan import Plan
from baselines.training.events import fold, read_events
from baselines.workloads import load
from timing import Budget, Profile

GOLDEN = Path(__file__).with_name("golden")
MEASURED_HERE = {"value", "train_loss", "test", "measured_seconds", "other_cores"}

PROFILE = GOLDEN / "profile.json"
COMPARE = (
    *("compare", "--workload", "digits", "--budget", "1s", "--seeds", "2"),
    *("--reference", str(PROFILE)),
)


def results(folder: Path) -> list[dict[str, Any]]:
    """Return what the command has left of each training, in the order of their folders' names."""
    paths = sorted(folder.glob("lawa-runs/*/1s/*/events.jsonl"))
    found = [fold(read_events(path.parent)) for path in paths]
    return [json.loads(json.dumps(asdict(result))) for result in found if result]


def ablation() -> list[dict[str, Any]]:
    """Return what an ablation finds, a training a seed; windows have the names of 1792e2a."""
    profile = Profile.read(PROFILE)
    cells = [(k, every) for every in ("auto", 7) for k in (1, 2, 5)]
    windows = [WindowConfig(k, every) for k, every in cells]
    methods = methods_of(windows)
    plan = Plan(load("digits"), methods, (0, 1), Budget(1.0), 0.1, 40, read_test=False)
    found = json.loads(json.dumps([asdict(result) for result in compare(plan, profile).trainings]))
    names = {window.name: str(window) for window in windows}
    for result in found:
        for run in result["runs"]:
            run["method"] = names.get(run["method"], run["method"])
    return found


def exact(tree: Any) -> Any:
    """Return the part that is the same on any machine."""
    if isinstance(tree, dict):
        return {key: exact(value) for key, value in tree.items() if key not in MEASURED_HERE}
    return [exact(value) for value in tree] if isinstance(tree, list) else tree


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield what has changed of what there was; what is told besides by now is no change."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            yield from differences(value, new.get(key), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif old != new:
        yield f"{where}: {old!r:.80} became {new!r:.80}"
