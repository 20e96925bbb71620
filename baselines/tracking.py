"""Records in MLflow; the only file that imports it."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Self

# A comparison reports to nobody that it runs; MLflow would, unless told before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from baselines import report
from baselines.methods import METHODS
from baselines.plots import metric_over_rst

if TYPE_CHECKING:
    from collections.abc import Mapping

    from baselines.comparison import Comparison, Plan
    from baselines.training import Point, Trajectory
    from timing import Profile

# The making of a new store fills the terminal otherwise.
logging.getLogger("mlflow").setLevel(logging.WARNING)

EXPERIMENT = "lawa-opt"
SECONDS_BETWEEN_WRITES = 5.0


class Tracker:
    """A comparison in MLflow: a parent run, and in it a run for each method and seed.

    A context manager; what leaves it by an exception is marked FAILED, or KILLED by an interrupt.
    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like hold as everywhere; without them the
    store is `mlflow.db` (SQLite) in the working folder and the experiment "lawa-opt".
    """

    def __init__(self, plan: Plan, profile: Profile) -> None:
        self._plan, self._profile = plan, profile
        self.run_id = ""
        self.experiment_id = ""
        self._client = mlflow.MlflowClient()
        self._children: dict[tuple[str, int], str] = {}
        self._unsent: dict[tuple[str, int], list[Metric]] = {}
        self._sent = time.monotonic()

    def __enter__(self) -> Self:
        plan = self._plan
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(EXPERIMENT)
        name = f"{plan.workload.name} {plan.budget.seconds:g}s x {len(plan.seeds)} seeds"
        run = mlflow.start_run(run_name=os.environ.get("MLFLOW_RUN_NAME", name))
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        mlflow.log_params(
            {
                **self._shared_parameters(),
                "methods": ",".join(plan.methods),
                "seeds": len(plan.seeds),
                **{f"data/{key}": value for key, value in plan.workload.data.items()},
                **{f"workload/{key}": value for key, value in plan.workload.signature.items()},
            }
        )
        mlflow.set_tags({"reference": str(self._profile.machine), "metric": plan.workload.metric})
        mlflow.log_metrics(
            {f"reference/{name}_seconds": cost for name, cost in self._profile.seconds.items()}
            | {"reference/closure": self._profile.closure}
        )
        mlflow.log_text(self._profile.model_dump_json(indent=2), "reference-profile.json")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        status = "FINISHED"
        if kind is not None:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self._send()
        for child in self._children.values():
            self._client.set_terminated(child, status)
        mlflow.end_run(status)

    def _shared_parameters(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "workload": plan.workload.name,
            "budget_seconds": plan.budget.seconds,
            "learning_rate": plan.settings.learning_rate,
            "k": plan.settings.k,
            "every": plan.settings.every,
        }

    def run_started(self, method: str, seed: int) -> None:
        """Open a child run, named by method and seed."""
        child = self._client.create_run(
            self.experiment_id,
            run_name=f"{method} seed {seed}",
            tags={MLFLOW_PARENT_RUN_ID: self.run_id, "title": METHODS[method].title},
        )
        self._children[method, seed] = child.info.run_id
        parameters = {"method": method, "seed": seed, **self._shared_parameters()}
        self._client.log_batch(
            child.info.run_id,
            params=[Param(name, str(value)) for name, value in parameters.items()],
        )

    def point(self, method: str, seed: int, point: Point) -> None:
        """Log an evaluation; RST is a metric too, so that it can be the x axis."""
        values = {
            "validation/metric": point.value,
            "train/loss": point.train_loss,
            "train/learning_rate": point.learning_rate,
            "rst_seconds": point.rst_seconds,
        }
        self._unsent.setdefault((method, seed), []).extend(_metrics(values, point.step))
        # One write of many points costs hardly more than one of one.
        if time.monotonic() - self._sent > SECONDS_BETWEEN_WRITES:
            self._send()

    def _send(self) -> None:
        for key, metrics in self._unsent.items():
            self._client.log_batch(self._children[key], metrics=metrics)
        self._unsent.clear()
        self._sent = time.monotonic()

    def trajectory_ended(self, trajectory: Trajectory) -> None:
        """Close the child runs with their accounts; a failed one is marked so, with the reason."""
        self._send()
        for run in trajectory.runs:
            child = self._children.pop((run.method, run.seed))
            values = {
                f"account/{line['operation']}_seconds": line["seconds"] for line in run.account
            }
            values |= {
                "account/rst_seconds": run.rst_seconds,
                "account/steps": run.steps,
                "trajectory/rst_seconds": trajectory.rst_seconds,
                "trajectory/measured_seconds": trajectory.measured_seconds,
                "trajectory/other_cores": trajectory.other_cores,
            }
            if run.failure is None:
                values["final/metric"] = run.final
            else:
                self._client.set_tag(child, "failure", run.failure)
            self._client.log_batch(child, metrics=_metrics(values, run.steps))
            self._client.log_dict(child, {"lines": list(run.account)}, "account.json")
            self._client.set_terminated(child, "FAILED" if run.failure else "FINISHED")

    def finish(self, comparison: Comparison) -> None:
        """Put table, verdict and plot on the parent run."""
        note = report.markdown(comparison)
        mlflow.set_tag(MLFLOW_RUN_NOTE, note)
        mlflow.log_text(note, "report.md")
        mlflow.log_table(report.columns(comparison), "results.json")
        mlflow.log_figure(metric_over_rst(comparison), "metric-over-rst.png")


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now_milliseconds = round(time.time() * 1000)
    return [Metric(name, value, now_milliseconds, step) for name, value in values.items()]


def ui_command() -> str:
    """The arguments after `python -m` that open the UI on this store, for this machine alone."""
    uri = mlflow.get_tracking_uri()
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000 --workers 1"
