"""Guess how long a comparison takes here, before anything of it was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baselines.experiment.calibration import effort
from baselines.experiment.plan import Plan, methods_by_training
from timing import Profile

CALIBRATING = "calibrating, with nothing beside it"
TUNING = "tuning under {:g} s"
# Of a training, where it is not known what an evaluation costs.
_EVALUATIONS = 0.6
# Reading the test part, exporting models, and what comes between trainings.
_BESIDE = 1.2


def training_of(plan: Plan) -> str:
    """Return the name of the phase that trains."""
    return f"training under {plan.budget.seconds:g} s"


def phases_of(plans: Sequence[Plan], profile: Profile | None, jobs: int) -> dict[str, float]:
    """Return the seconds that each phase will take, as if this machine were the reference."""
    phases = {} if profile else {CALIBRATING: effort(plans[0], jobs).seconds}
    for plan in plans:
        if plan.trials:
            trial = _trainings_seconds(replace(plan, read=plan.read[:1]), profile)
            phases[TUNING.format(plan.budget.seconds)] = plan.trials * trial / jobs
        once = _trainings_seconds(plan, profile)
        phases[training_of(plan)] = len(plan.seeds) * once / jobs
    return phases


def _trainings_seconds(plan: Plan, profile: Profile | None) -> float:
    """Return the seconds of all trainings of one seed."""
    training = sum(
        max(plan.budget_of(plan.method(name)).seconds for name in group)
        for group in methods_by_training(plan)
    )
    if profile is None:
        return training * (1 + _EVALUATIONS * len(plan.read)) * _BESIDE
    evaluations = len(plan.read) * sum(plan.evaluations_of(method) + 1 for method in plan.methods)
    return (training + evaluations * profile.seconds.get("evaluate", 0.0)) * _BESIDE
