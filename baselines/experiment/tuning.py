"""Equal tuning: every method tries as many settings, and the validation part says which is best.

The points are quasi-random, a Halton sequence as in AlgoPerf (arXiv 2306.07179), and the same for
all methods, so that those of the constant rate follow one training a trial.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.plan import RATE, Plan, Trial
from baselines.experiment.plan import check as check_plan
from baselines.methods.method import Method
from baselines.methods.part import Range
from baselines.training.checkpoint import write_atomically
from baselines.training.events import OnEvent, ignore
from timing import Profile

# The peak rate is tried up to so many times above and below what the user set.
RATE_FACTOR = 10.0
# Far from the seeds of comparisons, which count from 0.
FIRST_SEED = 1_000_000


class CutOffError(RuntimeError):
    """A trial did not end, so that none can be said to be the best."""


def space_of(plan: Plan, method: Method) -> dict[str, Range]:
    """Return the settings that tuning varies for a method: the peak rate and the method's own."""
    rate = plan.rate_of(method)
    around = Range(rate / RATE_FACTOR, rate * RATE_FACTOR, log=True)
    return {RATE: around, **method.space}


def trials(plan: Plan, count: int) -> list[Plan]:
    """Return a plan for each trial: one seed, not among the plan's, and settings a method.

    The first has the settings of the plan, so that tuning on this seed can only help. More trials
    begin with those of fewer.

    Raises:
        ValueError: `count` is below 1, or a method's range is beyond what a setting can be.
    """
    if count < 1:
        raise ValueError(f"tuning needs at least 1 trial of each method, not {count}")
    seed = next(number for number in itertools.count(FIRST_SEED) if number not in plan.seeds)
    spaces = {method.name: space_of(plan, method) for method in plan.methods}
    for method in plan.methods:
        for name, within in spaces[method.name].items():
            _check_range(method, name, within)
    points = _points(count, max(map(len, spaces.values()), default=1))
    return [
        replace(
            plan,
            seeds=(seed,),
            methods=tuple(
                _tried(method, spaces[method.name], point) if number else method
                for method in plan.methods
            ),
            trials=0,
            tried=(),
            read_test=False,
            read=plan.read[:1],
        )
        for number, point in enumerate(points)
    ]


def _check_range(method: Method, name: str, within: Range) -> None:
    for end in (0.0, 1.0):
        try:
            _tried(method, {name: within}, [end])
        except ValueError as error:
            raise ValueError(
                f"method {method.name} cannot tune {name} from {within.low:g} to {within.high:g}: "
                f"{error}; mend its space"
            ) from error


def _points(count: int, dimensions: int) -> list[list[float]]:
    """Return points of the unit cube.

    The sequence begins with the corner, which is left out. Then the first coordinate goes 1/2, 1/4,
    3/4, 1/8: as the logarithm of the rate it starts at the plan's own.
    """
    # Here, since it takes as long to import as all else that is no PyTorch.
    from scipy.stats import qmc

    sequence = qmc.Halton(dimensions, scramble=False)
    sequence.fast_forward(1)
    points: list[list[float]] = sequence.random(count).tolist()
    return points


def _tried(method: Method, space: Mapping[str, Range], point: Sequence[float]) -> Method:
    """Return the method with the settings at a point of its space."""
    # Not all methods use all dimensions.
    chosen = {name: _value(space[name], unit) for name, unit in zip(space, point, strict=False)}
    rate = chosen.pop(RATE, method.learning_rate)
    return replace(method.with_settings(chosen), learning_rate=rate)


def _value(within: Range, unit: float) -> float:
    """Return the value at this fraction of the way from the low to the high end.

    Each whole number has an equal part of the way, or of its logarithm.
    """
    low, high = within.low, within.high + within.whole
    if within.log:
        value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
    else:
        value = low + unit * (high - low)
    return min(math.floor(value), int(within.high)) if within.whole else value


def winners(plan: Plan, comparisons: Sequence[Comparison]) -> Plan:
    """Return the plan with the best settings of each method, and all that was tried.

    Best is by the validation metric at the end of the budget, and the earliest of equals; a run
    that failed is worse than any other. Where all failed, that is the plan's own settings.
    """
    tried = tuple(
        Trial(
            method=run.method,
            number=number,
            learning_rate=comparison.plan.rate_of(comparison.plan.method(run.method)),
            settings=comparison.plan.method(run.method).settings,
            value=run.final,
            rst_seconds=run.rst_seconds,
            trained_rst_seconds=result.rst_seconds / len(result.runs),
        )
        for number, comparison in enumerate(comparisons)
        for result in comparison.trainings
        for run in result.runs
    )
    best = []
    for method in plan.methods:
        mine = (trial for trial in tried if trial.method == method.name)
        winner = min(mine, key=lambda trial: plan.workload.badness(trial.value))
        chosen = method.with_settings(winner.settings)
        best.append(replace(chosen, learning_rate=winner.learning_rate))
    return replace(plan, methods=tuple(best), tried=tried)


def check(plan: Plan, profile: Profile) -> None:
    """Refuse a plan whose trials cannot be run; raises as `trials` and `comparison.check` do."""
    for trial in trials(plan, plan.trials):
        check_plan(trial, profile)


def tune(
    plan: Plan,
    profile: Profile,
    on_event: OnEvent = ignore,
    run_trial: Callable[[Plan, Profile, OnEvent], Comparison] = compare,
) -> Plan:
    """Try `plan.trials` settings for each method under the full budget, and take the best.

    The test part is not read. A trial that diverges is worse than any other. On one that was cut
    off nothing is chosen: it may have been the best.

    Args:
        plan: what is to be compared with the settings found.
        profile: of the reference machine.
        on_event: called with what the trials log.
        run_trial: runs one trial.

    Returns:
        The plan with those settings in its methods, and `tried`.

    Raises:
        ValueError: there is no trial, or some trial cannot be run, before any is.
        CutOffError: a training raised an error or was killed; all others have been tried.
    """
    check(plan, profile)
    done = [run_trial(trial, profile, on_event) for trial in trials(plan, plan.trials)]
    cut_off = [
        f"trial {number} of {run.method}: {run.failure or 'its training was not kept'}"
        for number, comparison in enumerate(done)
        for run in comparison.cut_off
    ]
    if cut_off:
        more = f" (and {len(cut_off) - 1} more)" if len(cut_off) > 1 else ""
        raise CutOffError(f"tuning cannot choose, since a trial did not end: {cut_off[0]}{more}")
    return winners(plan, done)


def columns(plan: Plan) -> dict[str, list[Any]]:
    """Return all that was tried by column, a line a method and trial; failures are "failed"."""
    table: dict[str, list[Any]] = {}
    # A method has no value of another's setting.
    settings = dict.fromkeys(name for trial in plan.tried for name in trial.tried)
    for trial in plan.tried:
        line = {
            "method": trial.method,
            "trial": trial.number,
            **settings,
            **trial.tried,
            "validation_metric": trial.value if math.isfinite(trial.value) else "failed",
            "rst_seconds": trial.rst_seconds,
            "trained_rst_seconds": trial.trained_rst_seconds,
            "chosen": _is_chosen(plan, trial),
        }
        for key, value in line.items():
            table.setdefault(key, []).append(value)
    return table


def _is_chosen(plan: Plan, trial: Trial) -> bool:
    """Say whether a trial has the settings that its method has in the plan."""
    method = plan.method(trial.method)
    return (trial.learning_rate, trial.settings) == (plan.rate_of(method), method.settings)


def write(plan: Plan, path: Path) -> None:
    """Write all that was tried as JSON, "columns" and "data", as MLflow reads tables.

    Raises:
        StorageError: it cannot be written.
    """
    table = columns(plan)
    rows = list(zip(*table.values(), strict=True))
    document = json.dumps({"columns": list(table), "data": rows}, indent=1)
    write_atomically(path, f"{document}\n".encode())


def varied(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return what trials of one method tried of each setting that they varied.

    Not what is in the method's space: this only reads results, and its file, if any, is not run.
    """
    names = trials[0].tried if trials else {}
    values = {name: [trial.tried[name] for trial in trials] for name in names}
    return {name: each for name, each in values.items() if name == RATE or len({*each}) > 1}


def title(plan: Plan) -> str:
    """Return the heading of the table of what tuning chose."""
    return f"Tuning on {plan.workload.metric}, {plan.trials} trials a method{plan.but_free}"


def edges(plan: Plan) -> list[str]:
    """Return a warning of what tuning chose at an edge of what it tried; none where there is none.

    Beyond an edge there may be something better, most of all of the peak rate.
    """
    if plan.tried and plan.trials == 1:
        return ["WARNING: of one trial nothing is chosen, so nothing was tuned: give more --trials"]
    found = []
    for method in plan.methods if plan.tried else ():
        mine = [trial for trial in plan.tried if trial.method == method.name]
        chosen = next(trial for trial in mine if _is_chosen(plan, trial))
        for name, values in varied(mine).items():
            if (edge := _edge(chosen.tried[name], values)) and math.isfinite(chosen.value):
                found.append(f"{method.name}: {name}={chosen.tried[name]:.4g} is the {edge}")
    said = (
        f"WARNING: tuning chose at the edge of the {plan.trials} values that it tried, and better "
        f"ones may lie beyond ({'; '.join(found)}): tune again with more --trials, --lr or space"
    )
    return [said] if found else []


def _edge(value: Any, tried: Sequence[Any]) -> str:
    """Return which end of the values tried this is; empty if neither, or if there is no order."""
    if any(isinstance(each, str) for each in tried):
        return ""
    return "lowest" if value == min(tried) else "highest" if value == max(tried) else ""


def rows(plan: Plan) -> list[list[str]]:
    """Return what tuning chose for each method and what it cost; the first row heads."""
    table = [["method", "chosen", "of", "validation", "RST alone", "RST trained"]]
    for method in plan.methods:
        mine = [trial for trial in plan.tried if trial.method == method.name]
        chosen = next(trial for trial in mine if _is_chosen(plan, trial))
        values = {name: chosen.tried[name] for name in varied(mine)}
        settings = ", ".join(
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:.4g}"
            for name, value in values.items()
        )
        trained = math.fsum(trial.trained_rst_seconds for trial in mine)
        table.append(
            [
                method.title,
                settings,
                f"{len(mine)} trials",
                f"{chosen.value:.4f}" if math.isfinite(chosen.value) else "all failed",
                f"{plan.tuning_rst_seconds[method.name]:.2f} s",
                f"{trained:.2f} s",
            ]
        )
    return table
