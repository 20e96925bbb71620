"""The view of a comparison in MLflow's UI: charts over RST, a line a method.

MLflow keeps a shared view as a tag of the experiment, and opens it by a key in the address. The
state is undocumented; what is written here was tried with MLflow 3.17, and an older or newer UI
that does not understand it shows its own default.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
X_AXIS = "rst_seconds"
# From above, what a reviewer asks for first. A metric's section is all before its last slash.
SECTIONS = ("validation", "train", "final", "work")


def view_key(comparison: str) -> str:
    """The key of the view of a comparison, the same each time."""
    return hashlib.sha256(comparison.encode()).hexdigest()[:24]


def address(server: str, experiment_id: str, comparison: str) -> str:
    """Return where the view opens, on the UI at the address `server`."""
    return (
        f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?"
        "workflowType=machine_learning&compareRunsMode=CHART"
        f"&viewStateShareKey={view_key(comparison)}"
    )


def experiment_tag(
    comparison: str, name: str, search: str, parent_run_id: str, created_milliseconds: int
) -> tuple[str, str]:
    """Key and value of the experiment's tag that holds the view.

    Args:
        comparison: the key of the comparison.
        name: of the view.
        search: MLflow's filter of the runs in it.
        parent_run_id: of the run of the comparison, which has no curves and is hidden.
        created_milliseconds: since 1970.
    """
    view = {
        "name": name,
        "createdAt": created_milliseconds,
        "updatedAt": created_milliseconds,
        "state": _encoded(_state(search, parent_run_id)),
    }
    return TAG + view_key(comparison), json.dumps(view)


def _encoded(state: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _state(search: str, parent_run_id: str) -> dict[str, Any]:
    by_method = {"mode": "param", "groupByData": "method"}
    return {
        "searchFilter": search,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [by_method]},
        "useGroupedValuesInCharts": True,
        # The first ten lines, by default.
        "runsHiddenMode": "SHOW_ALL",
        "runsHidden": [parent_run_id],
        "runsVisibilityMap": {parent_run_id: False},
        # The UI fills these with a chart for each metric of that section, and adds other sections.
        "compareRunCharts": [],
        "compareRunSections": [
            {
                "uuid": f"lawa-opt-{name}",
                "name": name,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": True,
            }
            for name in SECTIONS
        ],
        "isAccordionReordered": True,
        "globalLineChartConfig": {
            "xAxisKey": "metric",
            "selectedXAxisMetricKey": X_AXIS,
            "lineSmoothness": 0,
        },
    }
