"""Make a run in MLflow say what it is to say, and send nothing that is there already.

A metric keeps the time at which it was measured, under which MLflow stores the same value only
once; and one that the run already has at a step is left out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from baselines.tracking.mlflow_model import describe
from baselines.tracking.mlflow_store import require_home
from timing.secrets import hide

_T = TypeVar("_T")

# Why a run failed that ended by itself, and was not cut off.
FAILURE_TAG = "failure"
# MLflow's limits of one request.
METRICS_AT_ONCE, PARAMETERS_AT_ONCE, TAGS_AT_ONCE = 1000, 100, 100


@dataclass(frozen=True)
class Measured:
    """Metrics of one step, and when they were measured: milliseconds since 1970."""

    step: int
    time_milliseconds: int
    metrics: Mapping[str, float]


@dataclass
class Sent:
    """How many requests that change MLflow's store were made, whether or not they arrived."""

    count: int = 0


class RunInMlflow:
    """A run in MLflow, and what it has already.

    Args:
        client: by which it is changed.
        run: as MLflow has it.
        sent: counts what is sent.

    Attributes:
        run_id: MLflow's.
        status: RUNNING, FINISHED, FAILED or KILLED. What ended well is left alone.
        began_milliseconds: since 1970.
    """

    def __init__(self, client: mlflow.MlflowClient, run: MlflowRun, sent: Sent) -> None:
        self.run_id: str = run.info.run_id
        self.status: str = run.info.status
        self.began_milliseconds: int = run.info.start_time
        self._experiment_id: str = run.info.experiment_id
        self._artifacts_address: str = run.info.artifact_uri
        self._client = client
        self._sent = sent
        self._parameters = set(run.data.params)
        self._tags = dict(run.data.tags)
        # Metrics that were there when the run was found, whose steps are asked for when needed.
        self._metrics = set(run.data.metrics)
        self._steps: dict[str, set[int]] = {}
        self._files: set[str] | None = None
        self._has_model = False

    def _sending(self) -> mlflow.MlflowClient:
        """Return the client for a request that changes the store, which counts."""
        self._sent.count += 1
        return self._client

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Log those that the run has not: MLflow refuses another value for one it has."""
        new = [Param(name, hide(value)) for name, value in parameters.items()]
        new = [parameter for parameter in new if parameter.key not in self._parameters]
        for portion in _portions(new, PARAMETERS_AT_ONCE):
            self._sending().log_batch(self.run_id, params=portion)
        self._parameters |= parameters.keys()

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, the latest value of each."""
        tags = {name: hide(value) for name, value in tags.items()}
        new = [RunTag(name, value) for name, value in tags.items() if self._tags.get(name) != value]
        for portion in _portions(new, TAGS_AT_ONCE):
            self._sending().log_batch(self.run_id, tags=portion)
        self._tags |= tags

    def has_tag(self, name: str, value: str) -> bool:
        """Say whether the run has this tag."""
        return self._tags.get(name) == value

    def log_note(self, text: str, images: Iterable[str] = (), tables: Iterable[str] = ()) -> None:
        """Set the note, with the names of images as addresses that the UI serves."""
        for name in images:
            address = f"get-artifact?path={name}&run_uuid={self.run_id}"
            text = text.replace(f"]({name})", f"]({address})")
        tags = {MLFLOW_RUN_NOTE: text}
        # The UI shows a file as a table only where it is told to.
        if shown := [{"path": name, "type": "table"} for name in tables]:
            tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps(shown)
        self.log_tags(tags)

    def log_metrics(self, measured: Iterable[Measured]) -> None:
        """Log what the run has not: of a step the first value of each metric stands."""
        new = [
            Metric(name, value, each.time_milliseconds, each.step)
            for each in measured
            for name, value in each.metrics.items()
            if each.step not in self._steps_of(name)
        ]
        for portion in _portions(new, METRICS_AT_ONCE):
            self._sending().log_batch(self.run_id, metrics=portion)
            for metric in portion:
                self._steps[metric.key].add(metric.step)

    def _steps_of(self, metric: str) -> set[int]:
        if metric not in self._steps:
            there = metric in self._metrics
            history = self._client.get_metric_history(self.run_id, metric) if there else []
            self._steps[metric] = {known.step for known in history}
        return self._steps[metric]

    def lacks_file(self, name: str) -> bool:
        """Say whether there is no artifact of this name."""
        if self._files is None:
            self._files = {each.path for each in self._client.list_artifacts(self.run_id)}
        return name not in self._files

    def log_file(self, name: str, content: bytes) -> None:
        """Log an artifact of this name; one that is there is replaced.

        Raises:
            NeedsUserError: MLflow keeps the run's files in a folder that is not here.
        """
        require_home(self._artifacts_address)
        # MLflow takes the name from the file.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self._sending().log_artifact(self.run_id, str(path))
        if self._files is not None:
            self._files.add(name)

    def log_model(self, name: str, folder: Path) -> None:
        """Log an exported model, unless the run has one; raises NeedsUserError as `log_file`."""
        if self._has_model:
            return
        found = self._client.search_logged_models(
            [self._experiment_id], filter_string=f"source_run_id = '{self.run_id}'"
        )
        if not any(model.status == "READY" for model in found):
            require_home(self._artifacts_address)
            # One that was left unfinished is gone on with.
            made = next(iter(found), None) or self._sending().create_logged_model(
                self._experiment_id, name=name, source_run_id=self.run_id, model_type="pytorch"
            )
            with describe(folder) as described:
                self._sending().log_model_artifacts(made.model_id, str(described))
            self._sending().finalize_logged_model(made.model_id, "READY")
            self._sending().log_outputs(self.run_id, [LoggedModelOutput(made.model_id, step=0)])
        self._has_model = True

    def go_on(self) -> None:
        """Mark the run RUNNING, unless it has ended well."""
        if self.status not in ("RUNNING", "FINISHED"):
            self._sending().update_run(self.run_id, status="RUNNING")
            self.status = "RUNNING"

    def end(self, status: str, time_milliseconds: int, failure: str | None = None) -> None:
        """Mark how the run has ended, unless it has ended well; with a tag and a note why not."""
        if self.status == "FINISHED":
            return
        if failure is not None:
            self.log_tags({FAILURE_TAG: failure, MLFLOW_RUN_NOTE: f"**Failed**: {failure}"})
        elif status == "FINISHED" and FAILURE_TAG in self._tags:
            for name in (FAILURE_TAG, MLFLOW_RUN_NOTE):
                self._sending().delete_tag(self.run_id, name)
                del self._tags[name]
        if self.status != status:
            self._sending().set_terminated(self.run_id, status, end_time=time_milliseconds)
            self.status = status


def _portions(values: list[_T], most: int) -> Iterator[list[_T]]:
    for start in range(0, len(values), most):
        yield values[start : start + most]
