"""What studies of tuned methods at several budgets share: options, tuning, and the folder."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runs import say

from baselines.experiment import tuning
from baselines.experiment.calibration import measure_profile
from baselines.experiment.comparison import Comparison
from baselines.experiment.lock import Lock, LockedError
from baselines.experiment.manifest import FolderError
from baselines.experiment.plan import Plan, check
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, read_profile, root_of, write_profile
from baselines.training.checkpoint import CheckpointError, StorageError
from baselines.training.events import OnEvent
from timing import CalibrationError, Profile

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


@dataclass(frozen=True)
class Kept:
    """Where comparisons of one profile are kept.

    Attributes:
        profile: of the reference machine.
        roots: a folder for each list of plans, a plan for each budget.
    """

    profile: Profile
    roots: list[Path]


@contextmanager
def opened(
    parser: argparse.ArgumentParser, options: argparse.Namespace, lists: Sequence[Sequence[Plan]]
) -> Iterator[Kept]:
    """The folders of these plans; no other process works on them meanwhile."""
    try:
        given = Profile.read(options.reference) if options.reference else None
        text = given.model_dump_json() if given else ""
        roots = [root_of(options.folder, plans, text) for plans in lists]
    except ValueError as error:
        parser.error(str(error))
    try:
        with ExitStack() as locked:
            for root in roots:
                locked.enter_context(Lock(root))
            first = lists[0][0]
            profile = read_profile(roots[0]) or given or measure_profile(first, lambda *_: None)
            try:
                for plan in itertools.chain(*lists):
                    check(plan, profile)
            except ValueError as error:
                parser.error(str(error))
            for root in roots:
                write_profile(root, profile)
            yield Kept(profile, roots)
    except (
        *(StorageError, CheckpointError, FolderError, LockedError),
        *(CalibrationError, tuning.CutOffError),
    ) as error:
        sys.exit(f"error: {error}")


def compared(plan: Plan, profile: Profile, root: Path) -> Comparison:
    """The comparison, tuned, gone on with or found in its folder."""
    folder = budget_folder(root, plan)
    numbers = itertools.count()

    def one(trial: Plan, profile: Profile, on_event: OnEvent) -> Comparison:
        path = folder.with_name(f"{folder.name}-trial-{next(numbers)}")
        return resume(trial, profile, path, on_event)

    return resume(tuning.tune(plan, profile, say, one), profile, folder, say)
