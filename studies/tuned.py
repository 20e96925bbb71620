"""What studies of tuned methods at several budgets share: their options, and the tuning."""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from runs import say

from baselines.experiment import tuning
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder
from baselines.training.events import OnEvent
from timing import Profile

SEEDS = 5


def parsed(
    about: str | None,
    budgets: Mapping[str, str],
    arguments: Sequence[str] | None,
    *,
    trials: int,
    evaluations: int,
    quick: Mapping[str, Any],
) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The options.

    Args:
        about: the study's docstring.
        budgets: by default, of each workload, the first of which is taken by default.
        arguments: of the command line.
        trials: by default.
        evaluations: by default.
        quick: what `--quick` sets.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--workload", choices=tuple(budgets), default=next(iter(budgets)))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--budgets", help=f"RST of a run, with commas between; default: {budgets}")
    parser.add_argument("--evaluations", type=int, default=evaluations, help="of a run")
    parser.add_argument("--reference", type=Path, help="profile; default: measured now")
    parser.add_argument("--folder", type=Path, default=Path("lawa-runs"), help="keeps trainings")
    parser.add_argument("--out", type=Path, default=Path("claims"), help="for page and numbers")
    parser.add_argument("--quick", action="store_true", help="minutes, to try it; proves nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(quick)
    options.budgets = options.budgets or budgets[options.workload]
    for name in ("seeds", "trials", "evaluations"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1: {getattr(options, name)}")
    torch.set_num_threads(1)
    return options, parser


def compared(plan: Plan, profile: Profile, root: Path) -> Comparison:
    """The comparison, tuned, gone on with or found in its folder."""
    folder = budget_folder(root, plan)
    numbers = itertools.count()

    def one(trial: Plan, profile: Profile, on_event: OnEvent) -> Comparison:
        path = folder.with_name(f"{folder.name}-trial-{next(numbers)}")
        return resume(trial, profile, path, on_event)

    return resume(tuning.tune(plan, profile, say, one), profile, folder, say)
