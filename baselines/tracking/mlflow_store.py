"""Reach MLflow's store, and find or make the experiment there.

Where that is, the environment says: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and
MLFLOW_EXPERIMENT_ID, as everywhere; without them `mlflow.db` (SQLite) in the working folder and the
experiment "lawa-opt".
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import urllib.request
import uuid
from pathlib import Path

# A comparison reports to nobody that it runs; MLflow would, unless told before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What is not answered is sent again by us, and looked for before. MLflow would make a run twice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
# It prints the address of each run that ends, and with it the password, if there is one.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import psutil
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from baselines.tracking.store_address import placed, sqlite_file

# The making of a new store fills the log otherwise.
logging.getLogger("mlflow").setLevel(logging.WARNING)

EXPERIMENT = "lawa-opt"
# As it is to be called by others, too.
COMMAND = "MLFLOW_DISABLE_TELEMETRY=true python -m mlflow"
# What a store is called while it is made, before the number of the process that makes it.
_MAKING = ".mlflow.db-"
# Without it, the UI opens on an overview of generative AI and not on the runs.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


class NeedsUserError(Exception):
    """What no waiting mends: it says what a person can do in MLflow or in the environment."""


def experiment_in_words() -> str:
    """Return which experiment the environment names."""
    by_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return f"of id {by_id}" if by_id else repr(_experiment_name())


def client_of(store: str) -> mlflow.MlflowClient:
    """Return a client of the store, which is made if it is a file and not there."""
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


def experiment_in(client: mlflow.MlflowClient, store: str, known_id: str = "") -> str:
    """Return the id of the experiment to send to; one that the environment names is made.

    Args:
        client: of the store.
        store: its address.
        known_id: of the experiment, once it was found: it may be given another name meanwhile.

    Raises:
        NeedsUserError: it is deleted, or there is none of the id that the environment gives.
    """
    by_id = known_id or os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    found = _of_id(client, by_id) if by_id else None
    if found is None and by_id and by_id == os.environ.get("MLFLOW_EXPERIMENT_ID"):
        raise NeedsUserError(
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
        raise NeedsUserError(
            f"the experiment {found.name!r} is deleted: restore it with {COMMAND} experiments "
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


def require_home(artifacts: str) -> None:
    """Refuse to make the folder of another place again, or of another machine.

    MLflow keeps absolute paths, also where its own folder was moved.

    Args:
        artifacts: the address of a run's.

    Raises:
        NeedsUserError: it is in a folder that is not here.
    """
    path = _local_path(artifacts)
    if path is None or len(path.parents) < 4 or path.parents[2].name != "mlruns":
        return
    home = path.parents[3]
    if not home.exists():
        raise NeedsUserError(
            f"MLflow keeps files of this experiment in {path.parents[2]}, and there is no "
            f"{home} here: move or link it there, or name another experiment in "
            "MLFLOW_EXPERIMENT_NAME"
        )


def _local_path(address: str) -> Path | None:
    """Return the path that an address of artifacts names; None if they are not on a disk."""
    if address.startswith("file:"):
        return Path(urllib.request.url2pathname(address.removeprefix("file:").removeprefix("//")))
    return None if re.match(r"[\w+.-]+:", address) else Path(address)
