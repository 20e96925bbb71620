"""Say how to look at what was published."""

from __future__ import annotations

import os
import shlex
import sys

from baselines.tracking import saved_view
from baselines.tracking.said import REPORT
from baselines.tracking.store_address import placed


def review_instructions(store: str, experiment_id: str, comparisons: dict[str, str]) -> list[str]:
    """Return lines to print: what starts the UI, and where each comparison is in it.

    Args:
        store: its address, without its secrets.
        experiment_id: MLflow's.
        comparisons: MLflow's ids of their runs, by their keys.
    """
    lines, server = [], store
    if not store.startswith("http"):
        lines = ["To review the runs, start the MLflow UI:", f"  {_ui(store)}"]
        server = "http://127.0.0.1:5000"
    for key, run_id in comparisons.items():
        page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
        lines += [
            f"Table, verdict and plots: {page}/artifacts/{REPORT}?workflowType=machine_learning",
            "Curves over RST, by method:",
            saved_view.address(server, experiment_id, key),
        ]
    return lines


def _ui(store: str) -> str:
    """Return what starts MLflow's UI over a store, for the shell."""
    folder, address = placed(store)
    settings = ["MLFLOW_DISABLE_TELEMETRY=true"]
    of_store = ["--backend-store-uri", address]
    if store != (os.environ.get("MLFLOW_TRACKING_URI") or store):
        # With its password, which is neither for the screen nor for the list of processes.
        settings.append('MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"')
        of_store = []
    where = ["--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
    started = shlex.join([sys.executable, "-m", "mlflow", "ui", *of_store, *where])
    command = " ".join([*settings, started])
    return command if address == store else f"(cd {shlex.quote(str(folder))} && {command})"
