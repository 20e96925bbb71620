"""No Train No Gain's recipes, once more under RST: which pays, is it the idea or its cost?

(Kaddour et al. 2023, arXiv 2307.06440.) Each recipe under a fully decayed rate, with LAWA on top
and without, beside the workload's own optimizer, at three budgets; all tuned alike; once charged
for all that it runs, and once with whatever is no training step free. Writes a page and numbers.
`python studies/no_train_no_gain.py --workload digits`
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import folders
import tuned
from recipe_answers import BASELINE, Study, findings, numbers, page

from baselines.experiment.plan import Plan
from baselines.methods.method import Method
from baselines.methods.names import find
from baselines.workloads import load
from baselines.workloads.base import Workload
from timing import Budget, parse_seconds

HERE = Path(__file__).parent
WORKLOADS = {"deep-pydocs": str(HERE / "deep_pydocs.py"), "digits": "digits"}
RECIPES = (
    *("lion", "sophia", "selective-backprop"),
    # Its second model costs more than the shorter budgets; no run is charged for it, as in the
    # paper, and it is trained for less long than by default.
    "rho-loss(epochs=2,il_charge=none)",
    *("layer-dropping", "layer-stacking"),
)
# What is no training step; what else a recipe runs is one.
FREE = (
    *("score", "score_by_id", "hessian", "irreducible_step", "irreducible_score"),
    *("collect", "average", "statistics"),
)
# Three lengths; `--quick` is only to try the study out.
BUDGETS = {"deep-pydocs": "3s,6s,12s", "digits": "1.25s,2.5s,5s"}
# The answers are of the ends.
EVALUATIONS, TRIALS = 2, 6
QUICK = {"budgets": "0.1s,0.15s,0.2s", "evaluations": 2, "trials": 1, "seeds": 1}


def methods_of(workload: Workload) -> tuple[Method, ...]:
    """The baseline and the recipes that the workload is fit for, each without LAWA and with it."""
    offered = [
        recipe
        for recipe in RECIPES
        if all(getattr(workload, need) for need in find(recipe).recipe.needs)
    ]
    names = [BASELINE, *(f"{recipe}+{BASELINE}" for recipe in offered)]
    return tuple(find(each) for name in names for each in (name, f"{name}+lawa"))


def free_of(plan: Plan) -> tuple[str, ...]:
    """The operations of a plan's methods that are no training step."""
    names = {
        operation
        for method in plan.methods
        for operation in (
            *method.step_operations(plan.workload),
            *method.max_evaluation_operations(plan.workload),
        )
    }
    return tuple(name for name in names if name in FREE or name.startswith("stack_to_"))


def plans_of(options: argparse.Namespace) -> Iterator[list[Plan]]:
    """The plans of all budgets, charged; then the same with FREE free."""
    workload = load(WORKLOADS[options.workload])
    charged = [
        Plan(
            workload=workload,
            methods=methods_of(workload),
            seeds=tuple(range(options.seeds)),
            budget=Budget(parse_seconds(each)),
            learning_rate=workload.learning_rate,
            evaluations=options.evaluations,
            trials=options.trials,
        )
        for each in options.budgets.split(",")
    ]
    yield charged
    yield [replace(plan, free=free_of(plan)) for plan in charged]


def main(arguments: Sequence[str] | None = None) -> None:
    options, parser = tuned.parsed(
        __doc__, BUDGETS, arguments, trials=TRIALS, evaluations=EVALUATIONS, quick=QUICK
    )
    try:
        both = list(plans_of(options))
    except ValueError as error:
        parser.error(str(error))
    with folders.opened(parser, options, both) as kept:
        done = [
            [tuned.compared(plan, kept.profile, root) for plan in plans]
            for plans, root in zip(both, kept.roots, strict=True)
        ]
    study = Study(*done)
    answers = findings(study)
    command = f"python studies/no_train_no_gain.py --workload {options.workload}"
    command += " --quick" if options.quick else f" --seeds {options.seeds} --out docs/claims"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"no-train-no-gain-{options.workload}"
    path.with_suffix(".md").write_text(page(study, answers, command))
    document = json.dumps(numbers(study, answers), indent=1, allow_nan=False)
    path.with_suffix(".json").write_text(f"{document}\n")
    print(f"{path}.md, {path}.json")


if __name__ == "__main__":
    main()
