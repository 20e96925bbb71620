"""What is left in MLflow of a comparison that does not reach its end."""

from collections.abc import Iterator

import mlflow
import pytest
from test_report import CURVES, comparison

from baselines.tracking import Tracker
from baselines.training import Point


# One store for all: MLflow remembers the experiment for as long as the process lives.
@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        yield f"sqlite:///{folder / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("disk full"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_closes_the_runs_that_are_open(store, error, status) -> None:
    made = comparison(CURVES)
    tracker = Tracker(made.plan, made.profile)

    def cut_off() -> None:
        with tracker:
            tracker.run_started("lawa", 0)
            tracker.point("lawa", 0, Point(10, 1.0, 2.0, 2.0, 0.1))
            raise error

    with pytest.raises(type(error)):
        cut_off()
    client = mlflow.MlflowClient(store)
    found = client.search_runs([tracker.experiment_id])
    mine = tracker.run_id
    runs = [r for r in found if mine in (r.info.run_id, r.data.tags.get("mlflow.parentRunId"))]
    assert {run.info.run_name for run in runs} == {"digits 4s x 3 seeds", "lawa seed 0"}
    assert {run.info.status for run in runs} == {status}
    # What was measured until then is not lost.
    child = next(run for run in runs if run.info.run_name == "lawa seed 0")
    assert child.data.metrics["validation/metric"] == 2.0
    assert mlflow.active_run() is None
