"""What MLflow has, as its own client tells."""

import mlflow
from mlflow.entities import Run

from baselines.tracking.publish import COMPARISON_TAG, RUN_TAG


def runs_of(client: mlflow.MlflowClient, name: str = "lawa-opt", key: str = "") -> dict[str, Run]:
    """All runs of an experiment by name, or of one comparison by key; no two alike."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return {}
    search = f"tags.`{COMPARISON_TAG}` = '{key}'" if key else ""
    found = client.search_runs([experiment.experiment_id], search, max_results=1000)
    by_name = {run.data.tags[RUN_TAG] if key else run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def history(
    client: mlflow.MlflowClient, run: Run, metric: str = "validation/metric"
) -> list[tuple[int, float]]:
    """Step and value of all that was measured."""
    found = client.get_metric_history(run.info.run_id, metric)
    return [(metric.step, metric.value) for metric in found]


def everything(client: mlflow.MlflowClient, key: str) -> dict[str, object]:
    """All that MLflow has of a comparison."""
    return {
        name: (
            run.info.to_proto().SerializeToString(),
            run.data.params,
            {**run.data.tags},
            {
                metric: [(m.step, m.value, m.timestamp) for m in found]
                for metric in run.data.metrics
                if (found := client.get_metric_history(run.info.run_id, metric))
            },
            sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
            [output.model_id for output in run.outputs.model_outputs],
        )
        for name, run in runs_of(client, key=key).items()
    }
