"""Put into tables what runs were charged, and what they would have been otherwise."""

from __future__ import annotations

import math
import statistics

from baselines.analysis.tables import NO_RUN
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.training.results import Run
from timing import POLICIES
from timing.rst.account import charged_counts, reference_joules
from timing.rst.policy import uncharged

RSE = "RSE, J"


def totals(comparison: Comparison) -> list[list[str]]:
    """Return the reference seconds of each method under each policy, and joules of what is charged.

    The first row heads; joules are there where the reference has them.

    Means over the seeds whose runs ended: what a failed run was charged until then says nothing.
    """
    plan = comparison.plan
    head = ["method", *(f"{policy}, s" for policy in POLICIES)]
    if plan.free:
        head.append(f"{plan.policy}, nothing free, s")
    energy = rse_by_method(comparison)
    if energy:
        head.append(RSE)
    body = []
    for method, title in comparison.plan.titles.items():
        runs = comparison.of(method)
        ended = [run for run in runs if not run.failure]
        sums = [[run.totals[policy] for run in ended] for policy in POLICIES]
        if plan.free:
            sums.append([run.totals[plan.policy] + _left_free(run, plan) for run in ended])
        means = [f"{statistics.fmean(each):.3f}" if ended else NO_RUN for each in sums]
        failed = len(runs) - len(ended)
        if failed and ended:
            means[0] += f" ({failed} of {len(runs)} failed)"
        if energy:
            means.append(energy[method] if ended else NO_RUN)
        body.append([title, *means])
    return [head, *body]


def rse_by_method(comparison: Comparison) -> dict[str, str]:
    """Return the reference joules of what each method was charged, means over seeds that ended.

    Empty where the reference has none of what any method runs.
    """
    joules = comparison.profile.joules
    means: dict[str, float | None] = {}
    for method in comparison.plan.names:
        runs = [run for run in comparison.of(method) if not run.failure]
        found = [reference_joules(charged_counts(run.account), joules) for run in runs]
        known = [each for each in found if each is not None]
        means[method] = statistics.fmean(known) if known and len(known) == len(found) else None
    if not any(mean is not None for mean in means.values()):
        return {}
    return {
        method: "not known" if mean is None else f"{mean:.4g}" for method, mean in means.items()
    }


def _left_free(run: Run, plan: Plan) -> float:
    """Return the reference seconds that the policy would have charged, had nothing been free."""
    names = {*plan.free} - uncharged(plan.policy)
    return math.fsum(
        float(line["seconds"]) * (1 - float(line["charged"]))
        for line in run.account
        if line["operation"] in names
    )


def paid_once(comparison: Comparison) -> list[list[str]]:
    """Return what runs would have been charged had what many could use been charged otherwise.

    Not at all, shared by some runs (by so many seeds, if its share is not set) and in full; a line
    a method that has such operations. The first row heads.
    """
    plan = comparison.plan
    body = []
    for method in plan.methods:
        names = method.recipe.paid_once
        ended = [run for run in comparison.of(method.name) if not run.failure]
        if not names:
            continue
        share = max((method.recipe.charged_shares.get(name, 1.0) for name in names), default=1.0)
        runs = round(1 / share) if 0 < share < 1 else len(plan.seeds)
        once, rest = [], []
        for run in ended:
            lines = [line for line in run.account if line["operation"] in names]
            once.append(math.fsum(float(line["seconds"]) for line in lines))
            paid = math.fsum(float(line["seconds"]) * float(line["charged"]) for line in lines)
            rest.append(run.totals[plan.policy] - paid)
        cells = [
            f"{statistics.fmean(rest) + part * statistics.fmean(once):.3f}" if ended else NO_RUN
            for part in (0, 1 / runs, 1)
        ]
        cells[1] += f" ({runs} runs)" if ended else ""
        body.append([plan.titles[method.name], *cells])
    return [["method", "not at all, s", "shared, s", "in full, s"], *body]


def seconds_by_operation(comparison: Comparison) -> dict[tuple[str, bool], dict[str, float]]:
    """Return the mean seconds of each operation by method: what is charged (True), and what is not.

    Of the runs that ended.
    """
    found: dict[tuple[str, bool], dict[str, float]] = {}
    for method in comparison.plan.names:
        runs = [run for run in comparison.of(method) if not run.failure]
        for line in (line for run in runs for line in run.account):
            share = float(line["charged"])
            for is_charged, part in ((True, share), (False, 1 - share)):
                if part:
                    of = found.setdefault((str(line["operation"]), is_charged), {})
                    of[method] = of.get(method, 0.0) + part * float(line["seconds"]) / len(runs)
    return found
