"""Comparisons as if their runs had measured what is asked for, and as a command keeps them."""

import math
from pathlib import Path

from baselines.experiment import store
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan, tasks
from baselines.methods.names import find
from baselines.training.events import Evaluated, EventLog, Started, ending_of
from baselines.training.results import Point, Run, TrainingResult
from baselines.workloads import digits
from tests.support.profiles import profile_of
from timing import Budget

WORKLOAD = digits.load()


def run(
    method: str,
    seed: int,
    values: list[float],
    failure: str | None = None,
    test: float | None = None,
) -> Run:
    """A run that measured these; on the test part a quarter more, if not said otherwise."""
    points = tuple(Point(10 * i, float(i), v, v, 0.1) for i, v in enumerate(values, start=1))
    totals = {"algoperf": 4.0 + seed, "ntng": 3.0, "mlperf": 5.0}
    line = {"operation": "train_step", "times": 40, "seconds_each": 0.1, "seconds": 4.0}
    account = ({**line, "charged": True},)
    test = values[-1] + 0.25 if test is None else test
    share = find(method).share
    test = math.inf if failure else test
    return Run(method, seed, points, account, totals, 0.1, failure, test, share=share)


def comparison(curves: dict[str, list[list[float]]]) -> Comparison:
    """Runs from what they measured: for each method, for each seed, the metric at 1, 2, ... s."""
    seeds = tuple(range(len(next(iter(curves.values())))))
    plan = Plan(WORKLOAD, tuple(map(find, curves)), seeds, Budget(4.0), 0.1, 4)
    profile = profile_of([{"train_step": 0.1}], plan.signature)
    runs = tuple(
        run(method, seed, values)
        for method, by_seed in curves.items()
        for seed, values in enumerate(by_seed)
    )
    return Comparison(plan, profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))


CURVES = {
    "constant": [[4.0, 3.0, 2.5, 2.0], [4.1, 3.1, 2.6, 2.1], [4.0, 3.0, 2.6, 2.2]],
    "decayed": [[4.0, 3.0, 1.9, 1.0], [4.1, 3.1, 2.0, 1.1], [4.0, 3.0, 2.1, 1.15]],
    "lawa": [[3.0, 1.9, 1.7, 1.5], [3.1, 2.0, 1.8, 1.6], [3.0, 2.1, 1.8, 1.7]],
}


def kept(made: Comparison, root: Path) -> Path:
    """The comparison as a command keeps it."""
    store.write_profile(root, made.profile)
    inside = store.budget_folder(root, made.plan)
    store.write_or_verify(inside, made.plan)
    for task in tasks(made.plan):
        runs = tuple(r for r in made.runs if r.method in task.methods and r.seed == task.seed)
        log_of(store.task_folder(inside, task), TrainingResult(runs, 4.0, 4.1, 0.0))
    return root


def log_of(folder: Path, result: TrainingResult) -> None:
    """Log a training as if it had run."""
    seed = result.runs[0].seed
    with EventLog(folder) as log:
        log.append(Started(seed=seed, shares={run.method: run.share for run in result.runs}))
        for run in result.runs:
            for each in run.points:
                log.append(Evaluated(seed=seed, method=run.method, point=each))
        log.append(ending_of(result, seed))


def point(step: int) -> Point:
    return Point(step, step / 10, 1 / step, 2 / step, 0.1)


POINTS = [point(step) for step in range(10, 60, 10)]
