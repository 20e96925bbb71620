"""Records in MLflow; the only file that imports it.

`python -m baselines.tracking FOLDER` sends what a comparison has left in a folder. While one runs,
such a process is beside it (`--follow`), so that nothing of MLflow is ever on the training's time.

What is sent twice shows once: a run is looked for by its tags before it is made, a metric keeps the
time at which it was recorded, under which MLflow stores the same value only once, and one that a
run already has at a step (a resumed run repeats its latest steps) is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import re
import select
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

# A comparison reports to nobody that it runs; MLflow would, unless told before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What is not answered is sent again by us, so MLflow need not.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
# It prints the address of each run that ends, and with it the password, if there is one.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import psutil
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from baselines import saved_view
from baselines.records import (
    COMPARISON,
    COMPARISON_TAG,
    FAILURE_TAG,
    FILE,
    RUN_TAG,
    Record,
    Records,
    Sent,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

# The making of a new store fills the log otherwise.
logging.getLogger("mlflow").setLevel(logging.WARNING)

_T = TypeVar("_T")

EXPERIMENT = "lawa-opt"
SECONDS_BETWEEN_SENDS = 2.0
# At first; later it is this share of the run's age, so that a long run has some hundreds of them.
SECONDS_BETWEEN_SYSTEM_METRICS, SHARE_BETWEEN_SYSTEM_METRICS = 5.0, 0.005
RECORDS_AT_ONCE = 1000
# MLflow's limits of one request.
METRICS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100
# What a server answers to a record that it will not take, however often it is sent.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
# Without it, the UI opens on an overview of generative AI and not on the runs.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


class Sender:
    """Sends the records of a folder to MLflow.

    The first one to send from a folder decides where to: MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID in its environment.

    Attributes:
        running: by the keys of comparison and run, since when: milliseconds since 1970.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sent = Sent.read(folder)
        if not self._sent.tracking_uri:
            self._sent.tracking_uri = mlflow.get_tracking_uri()
            self._sent.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            self._sent.experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
        self._sent.write(folder)
        self._runs: dict[tuple[str, str], _Run] = {}
        self._client: mlflow.MlflowClient | None = None
        self.running: dict[tuple[str, str], int] = {}

    def send(self) -> bool:
        """Send all there is; returns whether MLflow took it, else the folder says why not."""
        while True:
            records, offset = read(self._folder, self._sent.offset_bytes, RECORDS_AT_ONCE)
            if not records:
                return True
            try:
                self._send(records)
            # Whatever goes wrong between here and a server of any kind is tried again.
            except Exception as error:
                self._sent.failure = _in_a_line(error)
                self._sent.write(self._folder)
                # What was opened may be in another state than was told.
                self._runs.clear()
                return False
            self._sent.offset_bytes = offset
            self._sent.failure = self._sent.failure if self._sent.refused else ""
            self._sent.write(self._folder)

    def _send(self, records: list[Record]) -> None:
        if self._client is None:
            _make_store(self._sent.tracking_uri)
            self._client = mlflow.MlflowClient(self._sent.tracking_uri)
        if not self._sent.experiment_id:
            self._sent.experiment_id = _experiment_id(self._client, self._sent.experiment)
        for same in _together(records):
            try:
                self._send_together(same)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self._sent.refused += len(same)
                self._sent.failure = _in_a_line(error)

    def _send_together(self, same: list[Record]) -> None:
        """Send records of one run, of which only the last has more than metrics."""
        record = same[-1]
        run = self._opened(record)
        run.log(same)
        if record.view is not None:
            assert self._client is not None
            view = saved_view.experiment_tag(
                record.comparison,
                record.view,
                f"tags.`{COMPARISON_TAG}` = '{record.comparison}'",
                run.run_id,
                record.time_milliseconds,
            )
            self._client.set_experiment_tag(self._sent.experiment_id, *view)
        for name, path in record.files.items():
            with contextlib.suppress(FileNotFoundError):
                run.log_file(name, self._folder / path)
        if record.model is not None:
            run.log_model(self._folder / record.model, self._sent.experiment_id)
        if record.status is not None:
            run.set_status(record.status, record.time_milliseconds)
            self.running.pop((record.comparison, record.run), None)
            if record.status == "RUNNING" and not run.has_ended:
                self.running[record.comparison, record.run] = run.began_milliseconds

    def _opened(self, record: Record) -> _Run:
        key = record.comparison, record.run
        if key not in self._runs:
            self._runs[key] = self._found(record) or self._made(record)
            if record.run == COMPARISON:
                self._sent.comparisons[record.comparison] = self._runs[key].run_id
        return self._runs[key]

    def _found(self, record: Record) -> _Run | None:
        assert self._client is not None
        found = self._client.search_runs(
            [self._sent.experiment_id],
            f"tags.`{COMPARISON_TAG}` = '{record.comparison}' "
            f"AND tags.`{RUN_TAG}` = '{record.run}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        if not found:
            return None
        return _Run(self._client, found[0])

    def _made(self, record: Record) -> _Run:
        assert self._client is not None
        tags = {COMPARISON_TAG: record.comparison, RUN_TAG: record.run}
        if record.run != COMPARISON:
            # A comparison's own record is its first, so this finds or makes what is its parent.
            parent = Record(comparison=record.comparison, name=record.comparison)
            tags[MLFLOW_PARENT_RUN_ID] = self._opened(parent).run_id
        made = self._client.create_run(
            self._sent.experiment_id,
            start_time=record.time_milliseconds,
            run_name=record.name or record.run,
            tags=tags,
        )
        return _Run(self._client, made)


class _Run:
    """A run in MLflow, and which metrics it has at which steps."""

    def __init__(self, client: mlflow.MlflowClient, run: MlflowRun) -> None:
        self.run_id = run.info.run_id
        self.began_milliseconds = run.info.start_time
        self._client = client
        # What is told again of a run changes nothing: not that it ended well, nor when it ended.
        self.has_ended = run.info.status == "FINISHED"
        self._ended_milliseconds = run.info.end_time
        self._has_failed = FAILURE_TAG in run.data.tags
        # Metrics that were there when the run was found, whose steps are asked for when needed.
        self._has = set(run.data.metrics)
        self._times: dict[str, dict[int, int]] = {}

    def log(self, records: Iterable[Record]) -> None:
        """Log parameters, tags, the note and metrics."""
        metrics = []
        for record in records:
            parameters = [Param(name, value) for name, value in record.parameters.items()]
            for portion in _portions(self._missing(parameters), PARAMETERS_AT_ONCE):
                self._client.log_batch(self.run_id, params=portion)
            tags = [RunTag(name, value) for name, value in record.tags.items()]
            if record.note is not None:
                tags.append(RunTag(MLFLOW_RUN_NOTE, self._with_images(record)))
            if record.tables:
                # The UI shows a file as a table only where it is told to.
                tables = [{"path": name, "type": "table"} for name in record.tables]
                tags.append(RunTag(MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables)))
            if tags:
                self._client.log_batch(self.run_id, tags=tags)
            metrics += [
                Metric(name, value, record.time_milliseconds, record.step)
                for name, value in record.metrics.items()
                if self._is_first(name, record)
            ]
        if any(metric.step not in self._times[metric.key] for metric in metrics):
            # It goes on, so its end is another one.
            self._ended_milliseconds = None
        for some in _portions(metrics, METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=some)
        for metric in metrics:
            self._times[metric.key][metric.step] = metric.timestamp

    def _missing(self, parameters: list[Param]) -> list[Param]:
        """Those that the run has not: MLflow refuses another value for one that it has."""
        if not parameters:
            return []
        there = self._client.get_run(self.run_id).data.params
        return [parameter for parameter in parameters if parameter.key not in there]

    def _is_first(self, metric: str, record: Record) -> bool:
        """Whether the run lacks this metric at this step, or has it from this very record."""
        if metric not in self._times:
            there = metric in self._has
            history = self._client.get_metric_history(self.run_id, metric) if there else []
            self._times[metric] = {known.step: known.timestamp for known in history}
        time_milliseconds = record.time_milliseconds
        return self._times[metric].get(record.step, time_milliseconds) == time_milliseconds

    def _with_images(self, record: Record) -> str:
        """The note, with the names of images as addresses that the UI serves."""
        note = record.note or ""
        for name in record.files:
            address = f"get-artifact?path={name}&run_uuid={self.run_id}"
            note = note.replace(f"]({name})", f"]({address})")
        return note

    def log_file(self, name: str, path: Path) -> None:
        """Log a file as an artifact of this name; one that is there is replaced."""
        # MLflow takes the name from the file.
        folder = path.parent / self.run_id
        folder.mkdir(exist_ok=True)
        copy = folder / name
        shutil.copyfile(path, copy)
        try:
            self._client.log_artifact(self.run_id, str(copy))
        finally:
            shutil.rmtree(folder)

    def log_model(self, path: Path, experiment_id: str) -> None:
        """Log a saved model, unless the run has one."""
        found = self._client.search_logged_models(
            [experiment_id], filter_string=f"source_run_id = '{self.run_id}'"
        )
        if path.exists() and not any(model.status == "READY" for model in found):
            made = self._client.create_logged_model(
                experiment_id, name=path.name, source_run_id=self.run_id, model_type="pytorch"
            )
            self._client.log_model_artifacts(made.model_id, str(path))
            self._client.finalize_logged_model(made.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(made.model_id, step=0)])
        # It may be large, and has arrived.
        shutil.rmtree(path, ignore_errors=True)

    def set_status(self, status: str, time_milliseconds: int) -> None:
        """Set it; a run that failed or was killed may go on, one that ended well is left alone."""
        if self.has_ended:
            return
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
            return
        if status == "FINISHED" and self._has_failed:
            self._client.delete_tag(self.run_id, FAILURE_TAG)
            self._client.delete_tag(self.run_id, MLFLOW_RUN_NOTE)
        ended = self._ended_milliseconds or time_milliseconds
        self._client.set_terminated(self.run_id, status, end_time=ended)


def _make_store(uri: str) -> None:
    """Make the SQLite file of a new store, whole or not at all.

    MLflow makes its tables in it for seconds, and cannot go on with those of a process killed then.
    """
    scheme, _, name = uri.partition("?")[0].partition("///")
    path = Path(name)
    if scheme != "sqlite:" or name in ("", ":memory:") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, as the folder of the artifacts follows from that of the file.
    making = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        mlflow.MlflowClient(f"sqlite:///{making}").search_experiments(max_results=1)
        # Another process was faster, or there are no links here, and MLflow makes it by itself.
        with contextlib.suppress(OSError):
            os.link(making, path)
    finally:
        making.unlink(missing_ok=True)


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):
            return str(client.create_experiment(name, tags=_KIND))
        # Another process may have made it in between.
        found = client.get_experiment_by_name(name)
    if found is None:
        raise MlflowException(f"the experiment {name!r} can neither be found nor made")
    return str(found.experiment_id)


def _together(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records of a run that go together, in their order: all but the last have metrics alone."""
    waiting: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        key = record.comparison, record.run
        waiting.setdefault(key, []).append(record)
        if not record.is_metrics_alone:
            yield waiting.pop(key)
    yield from waiting.values()


def _portions(values: list[_T], most: int) -> Iterator[list[_T]]:
    for start in range(0, len(values), most):
        yield values[start : start + most]


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # An address may hold a password.
    return re.sub(r"//[^/@ ]*@", "//", text)[:300]


def save_model(model: nn.Module, folder: Path, example_input: Tensor) -> None:
    """Save a model for `mlflow.pytorch.load_model`: as a graph (pt2), which needs no pickle.

    Args:
        model: a copy of its weights is saved, in evaluation mode.
        folder: is replaced.
        example_input: a batch of two or more, so that the size of a batch stays free.
    """
    # Neither is of use to the process that sends, which starts the sooner without them.
    import mlflow.pytorch
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(example_input)
        example = example_input.detach().cpu().numpy()
        with warnings.catch_warnings():
            # MLflow warns of type hints in its own code.
            warnings.simplefilter("ignore", UserWarning)
            mlflow.pytorch.save_model(
                model,
                str(folder),
                serialization_format="pt2",
                input_example=example,
                signature=mlflow.models.infer_signature(example, output.detach().cpu().numpy()),
                # Looking for what the model imports would load it in a process of its own.
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            )
    finally:
        model.train(was_training)


class _System:
    """What the machine and the training do meanwhile; the step is the age of a run in seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._monitor: SystemMetricsMonitor | None = None
        self._training = psutil.Process(os.getppid())
        self._began = self._next = time.time()
        self._latest = 0.0, 0.0

    def record(self, running: Mapping[tuple[str, str], int]) -> None:
        """Append what was measured since the last time, if it is long ago, to the runs open."""
        now = time.time()
        if now < self._next or not running:
            return
        if self._monitor is None:
            self._monitor = SystemMetricsMonitor(run_id="")  # type: ignore[no-untyped-call]
        age = now - self._began
        self._next = now + max(SECONDS_BETWEEN_SYSTEM_METRICS, age * SHARE_BETWEEN_SYSTEM_METRICS)
        self._monitor.collect_metrics()  # type: ignore[no-untyped-call]
        measured = self._monitor.aggregate_metrics()  # type: ignore[no-untyped-call]
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]
        measured |= self._of_training(now)
        metrics = {f"system/{name}": float(value) for name, value in measured.items()}
        with Records(self._folder) as records:
            for (comparison, run), began_milliseconds in running.items():
                step = max(0, round(now - began_milliseconds / 1000))
                records.add(Record(comparison=comparison, run=run, step=step, metrics=metrics))

    def _of_training(self, now: float) -> dict[str, float]:
        """Of the process that started this one, and of all the others that it started."""
        cpu_seconds, memory_bytes = 0.0, 0
        with contextlib.suppress(psutil.Error):
            for process in (self._training, *self._training.children(recursive=True)):
                if process.pid != os.getpid():
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        cpu_seconds += times.user + times.system
                        memory_bytes += process.memory_info().rss
        before, then = self._latest
        self._latest = cpu_seconds, now
        told = {"training_memory_megabytes": memory_bytes / 1e6}
        # A process of several may have ended, and its seconds with it.
        if then and cpu_seconds >= before:
            told["training_cpu_cores"] = (cpu_seconds - before) / (now - then)
        return told


def follow(folder: Path, wait_seconds: float) -> bool:
    """Send what is appended to a folder until standard input ends, and then what is left.

    Returns:
        Whether all was sent, within `wait_seconds` from the end of standard input.
    """
    sender = Sender(folder)
    system = _System(folder)
    ended = False
    deadline = float("inf")
    while True:
        done = sender.send()
        if ended and (done or time.monotonic() > deadline):
            return done
        if not ended:
            system.record(sender.running)
        # Readable is the end: nothing is ever written there.
        pipe = [] if ended else [sys.stdin]
        if select.select(pipe, [], [], SECONDS_BETWEEN_SENDS)[0]:
            ended = True
            deadline = time.monotonic() + wait_seconds


def _command() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m baselines.tracking", description="Send what a comparison left to MLflow."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--follow", action="store_true", help="go on until the end of standard input"
    )
    parser.add_argument("--wait", type=float, default=30.0, help="for the server, in seconds")
    options = parser.parse_args()
    if not (options.folder / FILE).exists():
        parser.error(f"{options.folder} holds no records: give a folder with a {FILE}")
    # One sender a folder: another one waits until this process is gone, in whatever way.
    with (options.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options.follow:
            # Training goes before.
            os.nice(5)
            return 0 if follow(options.folder, options.wait) else 1
        sender = Sender(options.folder)
        deadline = time.monotonic() + options.wait
        while not sender.send():
            if time.monotonic() > deadline:
                print(f"not sent: {Sent.read(options.folder).failure}", file=sys.stderr)
                return 1
            time.sleep(SECONDS_BETWEEN_SENDS)
    print("all is sent")
    return 0


if __name__ == "__main__":
    sys.exit(_command())
