"""Publish a folder once, or follow it while its command runs: `python -m baselines publish`."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from baselines.experiment.lock import is_locked
from baselines.experiment.manifest import FolderError
from baselines.tracking.mlflow_run import Sent
from baselines.tracking.mlflow_store import NeedsUserError
from baselines.tracking.publish import Published, Publisher, in_a_line

SECONDS_BETWEEN_LOOKS = 2.0
# What is trained goes before.
NICENESS = 5


class NotPublishedError(Exception):
    """MLflow has not taken it: why, in a line."""


def send(folder: Path, root: Path, wait_seconds: float) -> Published:
    """Publish a folder; its command's is `root`.

    Raises:
        FolderError: it holds no comparison, or a damaged one.
        NotPublishedError: MLflow has not taken it within `wait_seconds`, or needs a person's help.
    """
    deadline, sent = time.monotonic() + wait_seconds, Sent()
    while True:
        try:
            return Publisher(folder, sent).publish(is_running=is_locked(root))
        except FolderError:
            raise
        # Whatever goes wrong between here and a server of any kind is tried again.
        except Exception as error:
            if isinstance(error, NeedsUserError) or time.monotonic() > deadline:
                raise NotPublishedError(in_a_line(error)) from error
        time.sleep(SECONDS_BETWEEN_LOOKS)


def follow(root: Path, wait_seconds: float) -> Published:
    """Publish a command's folder as it grows, until standard input ends, and then what is left.

    Raises:
        FolderError: it is damaged, or was removed meanwhile.
        NotPublishedError: MLflow has not taken it within `wait_seconds` from the end of standard
            input, or needs a person's help.
    """
    os.nice(NICENESS)
    sent, system = Sent(), _SystemMetrics()
    publisher = Publisher(root, sent)
    latest: set[tuple[str, int, int]] | None = None
    has_ended, deadline = False, math.inf
    while True:
        try:
            there = _state_of(root)
            if has_ended or there != latest:
                published = publisher.publish(is_running=not has_ended)
                latest = there
                if has_ended and publisher.has_lost_runs():
                    publisher = Publisher(root, sent)
                    published = publisher.publish(is_running=False)
                if has_ended:
                    return published
                system.watch(publisher.running())
        except FolderError:
            publisher.give_up()
            raise
        except Exception as error:
            needs_user = isinstance(error, NeedsUserError)
            if has_ended and (needs_user or time.monotonic() > deadline):
                raise NotPublishedError(in_a_line(error)) from error
            # What is there may be other than what was seen.
            publisher, latest = Publisher(root, sent), None
            system.watch([])
        if has_ended:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        # Readable is the end: nothing is ever written there.
        elif select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            has_ended, deadline = True, time.monotonic() + wait_seconds
            system.watch([])


def _state_of(root: Path) -> set[tuple[str, int, int]]:
    """Return what changes when there is something new to publish."""
    found = set()
    for path in root.glob("*/**/*.json*"):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), about.st_mtime_ns, about.st_size))
    return found


class _SystemMetrics:
    """What the machine does while comparisons run, by MLflow's own monitor."""

    def __init__(self) -> None:
        self._monitors: dict[str, SystemMetricsMonitor] = {}

    def watch(self, run_ids: Iterable[str]) -> None:
        """Watch for these runs, and no others."""
        wanted = set(run_ids)
        for run_id in wanted - self._monitors.keys():
            monitor = SystemMetricsMonitor(run_id, resume_logging=True)  # type: ignore[no-untyped-call]
            monitor.start()  # type: ignore[no-untyped-call]
            self._monitors[run_id] = monitor
        for run_id in self._monitors.keys() - wanted:
            self._monitors.pop(run_id).finish()  # type: ignore[no-untyped-call]
