"""The folders that a study keeps its trainings in: of one profile, and of one process at a time."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from baselines.experiment.calibration import measure_profile, warnings_of
from baselines.experiment.lock import Lock, LockedError
from baselines.experiment.manifest import FolderError
from baselines.experiment.plan import Plan, check
from baselines.experiment.store import read_profile, root_of, write_profile
from baselines.experiment.tuning import CutOffError
from baselines.training.checkpoint import CheckpointError, StorageError
from timing import CalibrationError, Profile


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
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    lists: Sequence[Sequence[Plan]],
    others: Sequence[Plan] = (),
) -> Iterator[Kept]:
    """The folders of these plans; no other process works on them meanwhile.

    What cannot be done is a usage error before anything is trained, also of `others`, which are
    kept beside; what goes wrong later ends the study with a line.
    """
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
                for plan in itertools.chain(*lists, others):
                    check(plan, profile)
            except ValueError as error:
                parser.error(str(error))
            for line in warnings_of(profile):
                print(line, file=sys.stderr)
            for root in roots:
                write_profile(root, profile)
            yield Kept(profile, roots)
    except (
        *(StorageError, CheckpointError, FolderError, LockedError),
        *(CalibrationError, CutOffError),
    ) as error:
        sys.exit(f"error: {error}")
