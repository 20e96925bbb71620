"""Make MLflow say what the folder of a comparison says, again and again without doubles.

The folder is all there is: nothing beside it says what was sent. A run is found by its tags before
it is made, and is sent what it lacks. Nothing that a folder names is run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept, folders_of
from baselines.experiment.manifest import FolderError
from baselines.tracking import said, saved_view
from baselines.tracking.mlflow_run import Measured, RunInMlflow, Sent
from baselines.tracking.mlflow_store import (
    COMMAND,
    NeedsUserError,
    client_of,
    experiment_in,
    experiment_in_words,
)
from baselines.tracking.publish_run import RunEvents
from baselines.tracking.saved_view import COMPARISON_TAG, PARENT, RUN_TAG
from baselines.training.events import fold, methods_in
from timing.secrets import hide

_T = TypeVar("_T")

# Of the report that the parent has.
REPORT_TAG = "lawa_opt.report_sha256"
# What a server answers to what it does not take, while it may take the rest.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}


@dataclass
class Published:
    """What came of publishing a folder.

    Attributes:
        experiment: in words.
        store: its address, without its secrets.
        experiment_id: MLflow's.
        comparisons: MLflow's ids of their runs, by their keys.
        runs: that MLflow has of them.
        points: that those have.
        is_new: whether anything of it was sent now.
        refusals: why runs were refused, in a line each.
    """

    experiment: str
    store: str
    experiment_id: str = ""
    comparisons: dict[str, str] = field(default_factory=dict)
    runs: int = 0
    points: int = 0
    is_new: bool = False
    refusals: list[str] = field(default_factory=list)


class Publisher:
    """Publishes a folder, and remembers of MLflow what it has seen there.

    Args:
        folder: of a command's comparisons, or of one of them.
        sent: counts what is sent, also by one before that did not end well.
    """

    def __init__(self, folder: Path, sent: Sent) -> None:
        self._folder, self._sent = folder, sent
        self._store = mlflow.get_tracking_uri()
        self._client: mlflow.MlflowClient | None = None
        self._experiment_id = ""
        self._runs: dict[tuple[str, str], RunInMlflow] = {}
        self._seen: set[Path] = set()

    def publish(self, *, is_running: bool) -> Published:
        """Send all that MLflow lacks.

        Args:
            is_running: whether what has not ended is under way, and not cut off.

        Raises:
            FolderError: the folder holds no comparison, or a damaged one.
            NeedsUserError: nothing is taken until a person does what this says.
            Exception: whatever goes wrong between here and a server.
        """
        if gone := [folder for folder in self._seen if not folder.exists()]:
            raise FolderError(
                f"{gone[0]} was removed meanwhile, and with it all that had not reached MLflow by "
                "then"
            )
        folders = folders_of(self._folder)
        self._seen |= {*folders}
        if self._client is None:
            self._client = client_of(self._store)
        self._experiment_id = experiment_in(self._client, self._store, self._experiment_id)
        done = Published(experiment_in_words(), hide(self._store), self._experiment_id)
        for folder in folders:
            self._publish(Kept.read(folder), done, is_running=is_running)
        done.is_new = self._sent.count > 0
        return done

    def running(self) -> list[str]:
        """Return MLflow's ids of the comparisons that are under way."""
        return [
            run.run_id
            for (_, name), run in self._runs.items()
            if name == PARENT and run.status == "RUNNING"
        ]

    def has_lost_runs(self) -> bool:
        """Say whether MLflow has lost a run that it had, or it was deleted."""
        return not all(map(self._is_there, self._runs.values()))

    def _is_there(self, run: RunInMlflow) -> bool:
        assert self._client is not None
        try:
            return bool(self._client.get_run(run.run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def give_up(self) -> None:
        """Mark the runs that are under way KILLED, since nothing more of them can be known."""
        for run in self._runs.values():
            if run.status == "RUNNING":
                with contextlib.suppress(MlflowException):
                    run.end("KILLED", time.time_ns() // 1_000_000)

    def _publish(self, kept: Kept, done: Published, *, is_running: bool) -> None:
        """Publish one comparison; what is refused of one run holds up no other."""
        key, logs = kept.manifest.id, kept.logs()
        times = [event.time_milliseconds for log in logs for event in log]
        began = min(times, default=time.time_ns() // 1_000_000)
        name = os.environ.get("MLFLOW_RUN_NAME") or said.name_of(kept.plan)
        parent = self._unless_refused(
            done, key, PARENT, partial(self._opened, key, PARENT, name, began)
        )
        if parent is None:
            return
        done.comparisons[key] = parent.run_id
        self._unless_refused(done, key, PARENT, partial(self._describe, parent, kept))
        results = []
        for log in logs:
            result = fold(log)
            results += [result] if result else []
            for method in methods_in(log):
                told = RunEvents(kept, method, log)
                send = partial(self._publish_run, told, parent, is_running=is_running)
                if self._unless_refused(done, key, told.key, send):
                    done.runs += 1
                    done.points += len(told.measured())
        comparison = Comparison(kept.plan, kept.profile, tuple(results))
        y_range = None
        if all(len(comparison.of(method)) == len(kept.plan.seeds) for method in kept.plan.names):
            end = partial(_end, parent, kept, comparison, max(times))
            self._unless_refused(done, key, PARENT, end)
            y_range = said.range_of(comparison)
        elif is_running:
            parent.go_on()
        else:
            parent.end("KILLED", max(times, default=began))
        save = partial(self._save_view, kept, parent, y_range)
        self._unless_refused(done, key, PARENT, save)

    def _save_view(
        self, kept: Kept, parent: RunInMlflow, y_range: tuple[float, float] | None
    ) -> None:
        """Save the view that the printed address opens."""
        assert self._client is not None
        key, name = kept.manifest.id, said.name_of(kept.plan)
        began = parent.began_milliseconds
        view, state = saved_view.experiment_tag(kept.plan, key, name, began, y_range)
        if self._client.get_experiment(self._experiment_id).tags.get(view) != state:
            self._sent.count += 1
            self._client.set_experiment_tag(self._experiment_id, view, state)

    def _describe(self, parent: RunInMlflow, kept: Kept) -> None:
        """Send what a comparison is of."""
        plan, profile = kept.plan, kept.profile
        parent.log_parameters(said.parameters_of(plan))
        tags = {"reference": str(profile.machine), "metric": plan.workload.metric}
        parent.log_tags({**tags, "command": kept.manifest.command})
        reference = said.reference_metrics(profile)
        parent.log_metrics([Measured(0, parent.began_milliseconds, reference)])
        if parent.lacks_file("reference-profile.json"):
            content = profile.model_dump_json(indent=2).encode()
            parent.log_file("reference-profile.json", content)

    def _publish_run(
        self, told: RunEvents, parent: RunInMlflow, *, is_running: bool
    ) -> RunInMlflow:
        """Send what there is of one method and seed."""
        key, began = told.kept.manifest.id, told.log[0].time_milliseconds
        run = self._opened(key, told.key, told.name, began, parent)
        told.send_to(run, is_running=is_running)
        return run

    def _unless_refused(
        self, done: Published, key: str, run: str, send: Callable[[], _T]
    ) -> _T | None:
        """Return what sending to a run returns; None where that was refused, which is noted."""
        try:
            return send()
        except (MlflowException, NeedsUserError) as error:
            if isinstance(error, MlflowException) and error.error_code not in REFUSALS:
                raise
            # Where the experiment is at fault, nothing is taken.
            assert self._client is not None
            experiment_in(self._client, self._store, self._experiment_id)
            self._runs.pop((key, run), None)
            done.refusals.append(in_a_line(error))
            return None

    def _opened(
        self, key: str, run: str, name: str, began: int, parent: RunInMlflow | None = None
    ) -> RunInMlflow:
        """Return a run, which is made unless MLflow has it."""
        if (key, run) not in self._runs:
            self._runs[key, run] = self._found(key, run) or self._made(
                key, run, name, began, parent
            )
        return self._runs[key, run]

    def _found(self, key: str, run: str) -> RunInMlflow | None:
        assert self._client is not None
        found = self._client.search_runs(
            [self._experiment_id],
            f"tags.`{COMPARISON_TAG}` = '{key}' AND tags.`{RUN_TAG}` = {_quoted(run)}",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time ASC"],
        )
        for each in found:
            if each.info.lifecycle_stage == "active":
                return RunInMlflow(self._client, each, self._sent)
        if found:
            # Made again, it would be there twice once this one is restored.
            deleted = found[0].info
            raise NeedsUserError(
                f"the run {deleted.run_name!r} is deleted: restore it with {COMMAND} runs restore "
                f"--run-id {deleted.run_id}"
            )
        return None

    def _made(
        self, key: str, run: str, name: str, began: int, parent: RunInMlflow | None
    ) -> RunInMlflow:
        assert self._client is not None
        tags = {COMPARISON_TAG: key, RUN_TAG: run}
        if parent:
            tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
        self._sent.count += 1
        made = self._client.create_run(self._experiment_id, began, tags, name)
        return RunInMlflow(self._client, made, self._sent)


def _quoted(text: str) -> str:
    """Return a text as MLflow's filters take it, where nothing can be escaped."""
    if "'" in text and '"' in text:
        raise NeedsUserError(
            f"MLflow cannot look for a run called {text}: give the file a name without quotes"
        )
    return f'"{text}"' if "'" in text else f"'{text}'"


def _end(parent: RunInMlflow, kept: Kept, comparison: Comparison, time_milliseconds: int) -> None:
    """End the parent, with table, verdict and plots, unless it has these very ones."""
    parent.end("FAILED" if comparison.failure else "FINISHED", time_milliseconds)
    report = said.Report.of(kept, comparison)
    if parent.has_tag(REPORT_TAG, report.digest):
        return
    at_end = said.comparison_metrics(comparison)
    parent.log_metrics([Measured(0, time_milliseconds, at_end)])
    files = report.files()
    for name, content in files.items():
        parent.log_file(name, content)
    pictures = [name for name in files if name.endswith(".png")]
    tables = [name for name in files if name.endswith(".json")]
    parent.log_note(report.note(pictures), pictures, tables)
    parent.log_tags({REPORT_TAG: report.digest})


def in_a_line(error: Exception) -> str:
    """Return what an error says, in one line without secrets."""
    return hide(" ".join(str(error).split()) or type(error).__name__)[:500]
