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

from baselines.analysis.plots import FIRST_SHOWN
from baselines.experiment.plan import Plan
from baselines.tracking.said_of_readings import section_of

TAG = "mlflow.sharedViewState."
X_AXIS = "rst_seconds"
METRIC = "validation/metric"
# Tags by which the runs of a comparison are found again.
COMPARISON_TAG, RUN_TAG = "lawa_opt.comparison", "lawa_opt.run"
# The run of the comparison itself, the parent of all others.
PARENT = "comparison"
SECTION_ID = "lawa-opt-curves"
CHART_HEIGHT = 360
# A metric's section is all before its last slash.
OTHER_SECTIONS = ("validation", "final", "train", "work")


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
    plan: Plan,
    comparison: str,
    name: str,
    created_milliseconds: int,
    y_range: tuple[float, float] | None,
) -> tuple[str, str]:
    """Key and value of the experiment's tag that holds the view.

    Args:
        plan: of the comparison.
        comparison: the key of the comparison.
        name: of the view.
        created_milliseconds: since 1970.
        y_range: of the metric, where it matters; None before that is known.
    """
    view = {
        "name": name,
        "createdAt": created_milliseconds,
        "updatedAt": created_milliseconds,
        "state": _encoded(_state(plan, comparison, y_range)),
    }
    return TAG + view_key(comparison), json.dumps(view)


def _encoded(state: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _state(plan: Plan, comparison: str, y_range: tuple[float, float] | None) -> dict[str, Any]:
    by_method = {"mode": "param", "groupByData": "method"}
    end = "test" if plan.read_test else "final"
    judged = "final/test" if plan.read_test else "final/metric"
    read = [section_of(reading) for reading in plan.read[1:]]
    columns = ["params.`method`", "params.`seed`", f"metrics.`{judged}`", "metrics.`final/metric`"]
    columns += [f"metrics.`{section}/{end}`" for section in read]
    return {
        # The parent has no curves, and would be a group of its own.
        "searchFilter": f"tags.`{COMPARISON_TAG}` = '{comparison}' "
        f"AND tags.`{RUN_TAG}` != '{PARENT}'",
        "orderByKey": f"metrics.`{judged}`",
        "orderByAsc": not plan.workload.higher_is_better,
        "selectedColumns": list(dict.fromkeys([*columns, f"metrics.`{X_AXIS}`"])),
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [by_method]},
        "groupsExpanded": {f"param.method.{name}": False for name in plan.names},
        "useGroupedValuesInCharts": True,
        # The chart takes all of the width; its legend has the names.
        "runListHidden": True,
        # The first ten lines, by default.
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [_chart(plan, y_range)],
        # The UI makes a chart of every other metric, in sections of their own, which are closed.
        "compareRunSections": [
            {
                # Of the chart itself the UI shows the name of the metric.
                **_section(SECTION_ID, _title(plan), is_open=True),
                "columns": 1,
                "cardHeight": CHART_HEIGHT,
            },
            *(
                _section(f"lawa-opt-{name}", name, is_open=False)
                for name in (*OTHER_SECTIONS, *read)
            ),
        ],
        "isAccordionReordered": True,
        "globalLineChartConfig": {
            "xAxisKey": "metric",
            "selectedXAxisMetricKey": X_AXIS,
            "lineSmoothness": 0,
        },
    }


def _title(plan: Plan) -> str:
    # The UI cuts a name that is longer than about 40 letters.
    return f"validation {plan.workload.metric} over RST"


def _section(uuid: str, name: str, *, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": is_open,
        "isReordered": True,
        "deleted": False,
        "isGenerated": True,
    }


def _chart(plan: Plan, y_range: tuple[float, float] | None) -> dict[str, Any]:
    """Return one wide chart of the metric over RST, in the range where methods are told apart."""
    low, high = y_range or (None, None)
    begin, end = FIRST_SHOWN * plan.budget.seconds, plan.budget.seconds
    x_range = {"xMin": begin, "xMax": end} if y_range else {"xMin": None, "xMax": None}
    return {
        "uuid": "lawa-opt-chart",
        "type": "LINE",
        "metricSectionId": SECTION_ID,
        "isGenerated": False,
        "deleted": False,
        "runsCountToCompare": 100,
        "metricKey": METRIC,
        "selectedMetricKeys": [METRIC],
        "displayName": _title(plan),
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": X_AXIS,
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "ignoreOutliers": False,
        "range": {**x_range, "yMin": low, "yMax": high},
    }
