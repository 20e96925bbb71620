"""Records in MLflow; the only file that imports it.

`python -m baselines.tracking FOLDER` sends what a comparison has left in a folder. While one runs,
such a process is beside it (`--follow`), so that nothing of MLflow is ever on the training's time.

A sender sends all records, whoever sent them before: to the store and the experiment that MLflow
names where and when it runs. So what was refused is tried again, and what it calls sent is there.

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
import platform
import re
import select
import shutil
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TypeVar

# A comparison reports to nobody that it runs; MLflow would, unless told before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What is not answered is sent again by us, and looked for before. MLflow would make a run twice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
# It prints the address of each run that ends, and with it the password, if there is one.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from collections.abc import Iterable, Iterator, Mapping

import mlflow
import numpy as np
import psutil
from mlflow.entities import Experiment, LoggedModelOutput, Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types.schema import Schema, TensorSpec
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from baselines.tracking import saved_view
from baselines.tracking.records import (
    COMPARISON,
    COMPARISON_TAG,
    FAILURE_TAG,
    FILE,
    RUN_TAG,
    Record,
    Records,
    Sent,
    count,
    read,
)
from baselines.tracking.store_address import placed, sqlite_file, take_password_out
from baselines.training.exported_model import EXAMPLE, GRAPH, SHAPES
from timing.secrets import hide

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
# What a server answers to a record that it does not take, while it may take others.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
# As it is to be called by others, too.
_MLFLOW = "MLFLOW_DISABLE_TELEMETRY=true python -m mlflow"
# What a store is called while it is made, before the number of the process that makes it.
_MAKING = ".mlflow.db-"
# Without it, the UI opens on an overview of generative AI and not on the runs.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


class _NeedsUserError(Exception):
    """What no waiting mends: it says what a person can do in MLflow or in the environment."""


class Sender:
    """Sends the records of a folder to MLflow.

    Where to, its environment says: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and
    MLFLOW_EXPERIMENT_ID.

    Attributes:
        running: by the keys of comparison and run, since when: milliseconds since 1970.
        needs_user: whether nothing is taken until a person has done what the failure says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = mlflow.get_tracking_uri()
        self._sent = Sent(store=hide(self._store))
        self._sent.write(folder)
        self._runs: dict[tuple[str, str], _Run] = {}
        # Also those of which no more is known, after a failure.
        self._run_ids: set[str] = set()
        self._client: mlflow.MlflowClient | None = None
        self.running: dict[tuple[str, str], int] = {}
        self.needs_user = False

    @property
    def where(self) -> str:
        """The experiment and the store that the records are sent to."""
        by_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        experiment = f"of id {by_id}" if by_id else repr(_experiment_name())
        return f"the experiment {experiment} of {self._sent.store}"

    def send(self) -> bool:
        """Send all there is; returns whether MLflow took it, else the folder says why not."""
        self.needs_user = False
        while True:
            records, offset = read(self._folder, self._sent.offset_bytes, RECORDS_AT_ONCE)
            if not records:
                return True
            try:
                self._send(records)
            # Whatever goes wrong between here and a server of any kind is tried again.
            except Exception as error:
                return self._failed(error)
            self._sent.offset_bytes = offset
            self._sent.failure = self._sent.failure if self._sent.refused else ""
            self._sent.write(self._folder)

    def finish(self) -> bool:
        """Send what is left, and ask MLflow for all runs: those that were lost are sent again.

        Returns:
            Whether MLflow has confirmed them.
        """
        if not self.send():
            return False
        try:
            if all(map(self._is_there, self._run_ids)):
                return True
        except Exception as error:
            return self._failed(error)
        self._runs.clear()
        self._run_ids.clear()
        self._sent.offset_bytes = self._sent.refused = 0
        return self.send()

    def _failed(self, error: Exception) -> bool:
        self.needs_user = isinstance(error, _NeedsUserError)
        self._sent.failure = _in_a_line(error)
        self._sent.write(self._folder)
        # What was opened may be in another state than was told.
        self._runs.clear()
        return False

    def _is_there(self, run_id: str) -> bool:
        assert self._client is not None
        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def give_up(self) -> None:
        """Mark the runs that are open KILLED, since nothing more of them can be known."""
        for comparison, run in self.running:
            with contextlib.suppress(MlflowException, _NeedsUserError):
                opened = self._opened(Record(comparison=comparison, run=run))
                opened.set_status("KILLED", time.time_ns() // 1_000_000)

    def _send(self, records: list[Record]) -> None:
        if self._client is None:
            self._client = _client_of(self._store)
        self._find_experiment()
        for same in _together(records):
            refused = len(same)
            try:
                run = self._opened(same[-1])
                run.log(same)
                refused = 1
                self._send_rest(run, same[-1])
            except (MlflowException, _NeedsUserError) as error:
                if isinstance(error, MlflowException) and error.error_code not in REFUSALS:
                    raise
                # Where the experiment is at fault, nothing is taken: no record is passed over.
                self._find_experiment()
                self._runs.pop((same[-1].comparison, same[-1].run), None)
                self._sent.refused += refused
                self._sent.failure = _in_a_line(error)

    def _find_experiment(self) -> None:
        assert self._client is not None
        # By its id once it is known, since it may be given another name meanwhile.
        by_id = self._sent.experiment_id or os.environ.get("MLFLOW_EXPERIMENT_ID", "")
        experiment_id = _experiment_id(self._client, self._store, by_id)
        if experiment_id != self._sent.experiment_id:
            self._runs.clear()
            self._sent.experiment_id = experiment_id

    def _send_rest(self, run: _Run, record: Record) -> None:
        """Send all of a record that is not logged."""
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
        if record.status is not None:
            run.set_status(record.status, record.time_milliseconds)
            self.running.pop((record.comparison, record.run), None)
            if record.status == "RUNNING" and not run.has_ended:
                self.running[record.comparison, record.run] = run.began_milliseconds
        refusal = None
        for name, path in record.files.items():
            try:
                run.log_file(name, self._folder / path)
            except _NeedsUserError as error:
                refusal = error
        if refusal:
            raise refusal
        if record.model is not None:
            run.log_model(self._folder / record.model, self._sent.experiment_id)

    def _opened(self, record: Record) -> _Run:
        key = record.comparison, record.run
        if key not in self._runs:
            self._runs[key] = self._found(record) or self._made(record)
            self._run_ids.add(self._runs[key].run_id)
            if record.run == COMPARISON:
                self._sent.comparisons[record.comparison] = self._runs[key].run_id
        return self._runs[key]

    def _found(self, record: Record) -> _Run | None:
        assert self._client is not None
        found = self._client.search_runs(
            [self._sent.experiment_id],
            f"tags.`{COMPARISON_TAG}` = '{record.comparison}' "
            f"AND tags.`{RUN_TAG}` = '{record.run}'",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time ASC"],
        )
        for run in found:
            if run.info.lifecycle_stage == "active":
                return _Run(self._client, run)
        if found:
            # Made again, it would be there twice once this one is restored.
            deleted = found[0].info
            raise _NeedsUserError(
                f"the run {deleted.run_name!r} is deleted: restore it with {_MLFLOW} runs restore "
                f"--run-id {deleted.run_id}"
            )
        return None

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
        self._artifacts = run.info.artifact_uri
        self.began_milliseconds = run.info.start_time
        self._client = client
        # What is told again of a run changes nothing: not that it ended well, nor when it ended.
        self.has_ended = run.info.status == "FINISHED"
        self._ended_milliseconds = run.info.end_time
        self._has_failed = FAILURE_TAG in run.data.tags
        # Metrics that were there when the run was found, whose steps are asked for when needed.
        self._has = set(run.data.metrics)
        self._steps: dict[str, set[int]] = {}

    def log(self, records: Iterable[Record]) -> None:
        """Log parameters, tags, the note and metrics."""
        metrics = []
        for record in records:
            parameters = [Param(name, value) for name, value in record.parameters.items()]
            for portion in _portions(self._missing(parameters), PARAMETERS_AT_ONCE):
                self._client.log_batch(self.run_id, params=portion)
            tags = [RunTag(name, value) for name, value in record.tags.items()]
            if FAILURE_TAG in record.tags:
                if self.has_ended:
                    continue
                self._has_failed = True
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
                if self._is_new(name, record.step)
            ]
        if metrics:
            # It goes on, so its end is another one.
            self._ended_milliseconds = None
        for some in _portions(metrics, METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=some)

    def _missing(self, parameters: list[Param]) -> list[Param]:
        """Return those that the run has not: MLflow refuses another value for one it has."""
        if not parameters:
            return []
        there = self._client.get_run(self.run_id).data.params
        return [parameter for parameter in parameters if parameter.key not in there]

    def _is_new(self, metric: str, step: int) -> bool:
        """Say whether the run lacks this metric at this step; asked once, it then has it."""
        if metric not in self._steps:
            there = metric in self._has
            history = self._client.get_metric_history(self.run_id, metric) if there else []
            self._steps[metric] = {known.step for known in history}
        is_new = step not in self._steps[metric]
        self._steps[metric].add(step)
        return is_new

    def _with_images(self, record: Record) -> str:
        """The note, with the names of images as addresses that the UI serves."""
        note = record.note or ""
        for name in record.files:
            address = f"get-artifact?path={name}&run_uuid={self.run_id}"
            note = note.replace(f"]({name})", f"]({address})")
        return note

    def _require_home(self) -> None:
        """Refuse to make the folder of another place again, or of another machine.

        MLflow keeps absolute paths, also where its own folder was moved.
        """
        path = _local_path(self._artifacts)
        if path is None or len(path.parents) < 4 or path.parents[2].name != "mlruns":
            return
        home = path.parents[3]
        if not home.exists():
            raise _NeedsUserError(
                f"MLflow keeps files of this experiment in {path.parents[2]}, and there is no "
                f"{home} here: move or link it there, or name another experiment in "
                "MLFLOW_EXPERIMENT_NAME"
            )

    def log_file(self, name: str, path: Path) -> None:
        """Log a file as an artifact of this name; one that is there is replaced."""
        if not path.exists():
            raise _NeedsUserError(f"{path} is not there")
        self._require_home()
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
        if not any(model.status == "READY" for model in found):
            if not path.exists():
                raise _NeedsUserError(
                    f"the model {path.name!r} is not in this store, and was removed from "
                    f"{path.parent} when another one had taken it"
                )
            self._require_home()
            _describe_model(path)
            # One that a sender left unfinished is gone on with.
            made = next(iter(found), None) or self._client.create_logged_model(
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
            self._has_failed = False
        ended = self._ended_milliseconds or time_milliseconds
        self._client.set_terminated(self.run_id, status, end_time=ended)
        self.has_ended = status == "FINISHED"


def _local_path(address: str) -> Path | None:
    """The path that an address of artifacts names; None if they are not on a disk."""
    if address.startswith("file:"):
        return Path(urllib.request.url2pathname(address.removeprefix("file:").removeprefix("//")))
    return None if re.match(r"[\w+.-]+:", address) else Path(address)


def _client_of(store: str) -> mlflow.MlflowClient:
    """A client of the store, which is made if it is a file and not there."""
    if whole := sqlite_file(store):
        whole.parent.mkdir(parents=True, exist_ok=True)
    folder, address = placed(store)
    with contextlib.chdir(folder):
        if file := sqlite_file(address):
            _make_store(file)
        client = mlflow.MlflowClient(address)
        # Here, while the address is that of the store.
        client.search_experiments(max_results=1)
    return client


def _make_store(file: Path) -> None:
    """Make the SQLite file of a new store, whole or not at all.

    MLflow makes its tables in it for seconds, and cannot go on with those of a process killed then.
    """
    for left in file.parent.glob(f"{_MAKING}*"):
        process = re.match(r"\d+", left.name.removeprefix(_MAKING))
        if process and not psutil.pid_exists(int(process[0])):
            left.unlink(missing_ok=True)
    if file.exists():
        return
    # Beside it, as the folder of the artifacts follows from that of the file.
    making = file.with_name(f"{_MAKING}{os.getpid()}")
    try:
        mlflow.MlflowClient(f"sqlite:///{making}").search_experiments(max_results=1)
        # Another process was faster, or there are no links here, and MLflow makes it by itself.
        with contextlib.suppress(OSError):
            os.link(making, file)
    finally:
        making.unlink(missing_ok=True)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _experiment_id(client: mlflow.MlflowClient, store: str, by_id: str) -> str:
    """The id of the experiment to send to; one that the environment names is made.

    Raises:
        _NeedsUserError: it is deleted, or there is none of the id that the environment gives.
    """
    found = _of_id(client, by_id) if by_id else None
    if found is None and by_id and by_id == os.environ.get("MLFLOW_EXPERIMENT_ID"):
        raise _NeedsUserError(
            f"there is no experiment of the id {by_id}: set MLFLOW_EXPERIMENT_ID to another, or "
            "MLFLOW_EXPERIMENT_NAME in its place"
        )
    name = _experiment_name()
    found = found or client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):
            return str(client.create_experiment(name, _artifacts(store), tags=_KIND))
        # Another process may have made it in between.
        found = client.get_experiment_by_name(name)
    if found is None:
        raise MlflowException(f"the experiment {name!r} can neither be found nor made")
    if found.lifecycle_stage != "active":
        raise _NeedsUserError(
            f"the experiment {found.name!r} is deleted: restore it with {_MLFLOW} experiments "
            f"restore --experiment-id {found.experiment_id}, or name another one in "
            "MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)


def _of_id(client: mlflow.MlflowClient, experiment_id: str) -> Experiment | None:
    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _artifacts(store: str) -> str | None:
    """Return where a new experiment keeps its files; None for where MLflow would.

    That is a path, of which MLflow takes a name such as "a%20b" for "a b".
    """
    folder, _ = placed(store)
    if sqlite_file(store) is None or "%" not in str(folder):
        return None
    return (folder / "mlruns" / uuid.uuid4().hex).as_uri()


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
    return hide(" ".join(str(error).split()) or type(error).__name__)[:500]


def _describe_model(folder: Path) -> None:
    """Write what MLflow needs beside an exported model, so that `mlflow.pytorch` loads it.

    By hand, since `mlflow.pytorch.save_model` imports Lightning where that is installed, and looks
    through all packages there are: ten seconds, for a file of thirty lines.
    """
    shapes = json.loads((folder / SHAPES).read_text())
    versions = [f"mlflow=={mlflow.__version__}", f"torch=={shapes['torch'].partition('+')[0]}"]
    (folder / "requirements.txt").write_text("\n".join(versions))
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    # YAML holds all of JSON.
    (folder / "python_env.yaml").write_text(json.dumps(python))
    inputs, outputs = (
        Schema([TensorSpec(np.dtype(shapes[name]["dtype"]), shapes[name]["shape"])])
        for name in ("inputs", "outputs")
    )
    model = mlflow.models.Model(
        signature=ModelSignature(inputs, outputs),
        saved_input_example_info={"artifact_path": EXAMPLE, "type": "ndarray"},
    )
    data = str(Path(GRAPH).parent)
    model.add_flavor("pytorch", model_data=data, pytorch_version=shapes["torch"], code=None)
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pytorch",
        data=data,
        env={"virtualenv": "python_env.yaml"},
        python_version=platform.python_version(),
        config={"device": None},
    )
    model.save(str(folder / "MLmodel"))


class _System:
    """What the machine and the training do meanwhile; the step is the age of a run in seconds."""

    def __init__(self, folder: Path) -> None:
        # Opened once: opened again, a folder that was removed meanwhile would be made again.
        self._records = Records(folder)
        self._monitor: SystemMetricsMonitor | None = None
        self._training = psutil.Process(os.getppid())
        self._began = self._next = time.monotonic()
        self._latest = 0.0, 0.0

    def record(self, running: Mapping[tuple[str, str], int]) -> None:
        """Append what was measured since the last time, if it is long ago, to the runs open."""
        now = time.monotonic()
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
        for (comparison, run), began_milliseconds in running.items():
            step = max(0, round(time.time() - began_milliseconds / 1000))
            self._records.add(Record(comparison=comparison, run=run, step=step, metrics=metrics))

    def _of_training(self, now: float) -> dict[str, float]:
        """Return the use of the process that started this one, and of all that it started."""
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
        if not (folder / FILE).exists():
            sender.give_up()
            return False
        done = sender.finish() if ended else sender.send()
        if ended and (done or sender.needs_user or time.monotonic() > deadline):
            return done
        if not ended:
            system.record(sender.running)
        # Readable is the end: nothing is ever written there.
        pipe = [] if ended else [sys.stdin]
        if select.select(pipe, [], [], SECONDS_BETWEEN_SENDS)[0]:
            ended = True
            deadline = time.monotonic() + wait_seconds


def send(folder: Path, wait_seconds: float) -> bool:
    """Send what is in a folder, and print what came of it.

    Returns:
        Whether all of it is in MLflow, within `wait_seconds`.
    """
    sender = Sender(folder)
    deadline = time.monotonic() + wait_seconds
    while not sender.finish():
        if sender.needs_user or time.monotonic() > deadline:
            print(f"not sent: {Sent.read(folder).failure}", file=sys.stderr)
            return False
        time.sleep(SECONDS_BETWEEN_SENDS)
    sent, all_records = Sent.read(folder), count(folder, 0)
    if sent.refused:
        print(
            f"{sent.refused} of {all_records} record(s) were refused: {sent.failure}",
            file=sys.stderr,
        )
        return False
    print(f"all is sent: {all_records} record(s) are in {sender.where}")
    return True


def command() -> int:
    """Send what a folder holds, as the command line says; return the exit status."""
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
    take_password_out()
    try:
        # One sender a folder: another one waits until this process is gone, in whatever way.
        with (options.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process sends from {options.folder}: waiting", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if options.follow:
                # Training goes before.
                os.nice(5)
                return 0 if follow(options.folder, options.wait) else 1
            return 0 if send(options.folder, options.wait) else 1
    except OSError as error:
        print(_in_a_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is not sent stays", file=sys.stderr)
        return 130
