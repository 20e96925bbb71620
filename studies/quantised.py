"""Weights read as they will be used: does quantisation turn the order of averages and decay?

Catalan-Tatjer et al. (2025, arXiv 2510.06213) report of large models that the error of quantisation
jumps where the rate decays. Here averages of the constant and of the decayed rate are held against
the decayed rate at three budgets, all tuned alike in float, and evaluated rounded to 8, 4 and 3
bits, with a scale a row or for each 32 values. Figure: the order by precision, what rounding adds
along the training, and windows. `python studies/quantised.py --workload digits`
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import folders
import tuned
from quantised_answers import METHODS, READINGS, Study, findings
from quantised_report import draw, numbers
from runs import K, Runs, ended, say

from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder
from baselines.methods.names import find
from baselines.workloads import load
from timing import Budget, Profile, parse_seconds

WORKLOADS = {
    "pydocs": "pydocs",
    "digits": "digits",
    "regression": str(Path(__file__).parent / "regression.py"),
}
BUDGETS = {
    # The longest is about as many steps as README's comparison.
    "pydocs": "4s,16s,64s",
    "digits": "1.25s,2.5s,5s",
    "regression": "1.25s,2.5s,5s",
}
# Evaluations at each tenth, and the fall of wsd begins at one of them.
EVALUATIONS, TRIALS = 10, 3
QUICK = {"budgets": "0.1s,0.15s,0.2s", "evaluations": 2, "trials": 1, "seeds": 2}
# Of a training, that a window of LAWA spans.
HORIZONS = (0.01, 0.03, 0.1, 0.3)
# LAWA by its rate: each with several windows.
RATES = {"constant rate": "lawa", "decayed rate": "decayed+lawa"}


def plans_of(options: argparse.Namespace) -> list[Plan]:
    """A plan for each budget."""
    workload = load(WORKLOADS[options.workload])
    return [
        Plan(
            workload=workload,
            methods=tuple(map(find, METHODS)),
            seeds=tuple(range(options.seeds)),
            budget=Budget(parse_seconds(each)),
            learning_rate=workload.learning_rate,
            evaluations=options.evaluations,
            trials=options.trials,
            read=READINGS,
        )
        for each in options.budgets.split(",")
    ]


def windows(
    comparison: Comparison, profile: Profile, root: Path
) -> tuple[Comparison, dict[str, dict[str, float]]]:
    """LAWA with each window at the rates that tuning chose; and what share each one spans.

    The test part is not read.
    """
    plan = comparison.plan
    horizons: dict[str, dict[str, float]] = {}
    methods = {}
    for rate, average in RATES.items():
        own = plan.method(find(average).name)
        steps = statistics.median(run.steps for run in comparison.of(own.name))
        spans = {}
        for horizon in HORIZONS:
            every = max(1, round(horizon * steps / K))
            method = find(f"{average}(every={every})")
            methods[method.name] = replace(method, learning_rate=plan.rate_of(own))
            spans[method.name] = every * K / steps
        horizons[rate] = spans
    plan = replace(
        plan, methods=tuple(methods.values()), evaluations=1, read_test=False, trials=0, tried=()
    )
    folder = budget_folder(root, plan)
    found = resume(plan, profile, folder.with_name(f"{folder.name}-windows"), say)
    return ended(found), horizons


def main(arguments: Sequence[str] | None = None) -> None:
    options, parser = tuned.parsed(
        __doc__, BUDGETS, arguments, trials=TRIALS, evaluations=EVALUATIONS, quick=QUICK
    )
    try:
        plans = plans_of(options)
    except ValueError as error:
        parser.error(str(error))
    with folders.opened(parser, options, [plans]) as kept:
        (root,) = kept.roots
        comparisons = [ended(tuned.compared(plan, kept.profile, root)) for plan in plans]
        middle = comparisons[len(comparisons) // 2]
        study = Study(comparisons, *windows(middle, kept.profile, root))
        runs = Runs(study.long.plan, kept.profile, root, options.out)
        runs.report("quantised", findings(study), numbers(study), draw(study))


if __name__ == "__main__":
    main()
