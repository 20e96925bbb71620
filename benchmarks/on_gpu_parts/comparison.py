"""A comparison of the default methods, as large as the time that is left allows.

On the workload and under the profile of the parts before. MLflow is not needed: the folder comes
home in `comparison.tar.gz`, and is published from there.
"""

from dataclasses import replace

import torch
from rows import Row

from baselines.analysis import report
from baselines.cli.console import show
from baselines.cli.duration import phases_of, training_of
from baselines.cli.progress import Course
from baselines.cli.screen import Screen
from baselines.experiment.plan import Plan, methods_by_training
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder, write_profile
from baselines.methods.names import DEFAULT, find
from baselines.workloads import load
from on_gpu_parts.part import Part
from on_gpu_parts.reference import profile_of, target
from timing import Budget
from timing.rst.account import reference_joules

EVALUATIONS = 12
# Three if each run can then have this long, else two: without two there is no interval.
SEEDS, FEWEST_SEEDS, SECONDS_A_RUN = 3, 2, 8.0
LEAST_SECONDS = 0.5
# Of the seconds left: what trainings may plan with, once this has gone for plots and packing.
SHARE, SECONDS_TO_END = 0.85, 18.0
# Of a training, to build its model and tell of its end.
SECONDS_AROUND = 1.5
# It is not gone on with: a checkpoint would take a second for each of some hundred megabytes.
NEVER_SECONDS = 1e9


def seconds_a_run(seconds, seeds, plan, profile, over_rst):
    """The budget of each run with which the comparison takes so many seconds."""
    trainings = len(methods_by_training(plan)) * seeds
    evaluations = len(plan.methods) * seeds * (EVALUATIONS + 2)
    around = trainings * SECONDS_AROUND + evaluations * profile.seconds["evaluate"]
    return (seconds * SHARE - around) / trainings / over_rst


def planned(part, workload, profile):
    methods = tuple(map(find, DEFAULT))
    plan = Plan(workload, methods, (), Budget(1.0), workload.learning_rate, EVALUATIONS)
    # As it was in the training, where that has ended.
    rst, measured = (part.data_of("training", f"{n}_seconds") for n in ("rst", "measured"))
    over_rst = measured / rst if rst and measured else 1.0
    for seeds in (SEEDS, FEWEST_SEEDS):
        left = part.seconds_left - SECONDS_TO_END
        seconds = seconds_a_run(left, seeds, plan, profile, over_rst)
        if seconds >= SECONDS_A_RUN:
            break
    if part.smoke:
        seeds, seconds = FEWEST_SEEDS, LEAST_SECONDS
    budget = Budget(round(max(LEAST_SECONDS, seconds), 1))
    return replace(plan, seeds=tuple(range(seeds)), budget=budget)


def add_energy(part, result, profile, size):
    """Add reference system energy of a training, and what its GPUs used here beside it."""
    if (measurement := result.measurement) is None:
        return
    rse = reference_joules(measurement.operations, profile.joules)
    if rse is None:
        part.note(f"{size}: no RSE, for the profile has no joules of all that ran.")
        return
    used = measurement.gpu_joules
    beside = {"measured, evaluations included": used / rse} if used else {}
    part.add(Row("RSE of all that ran but evaluations", size, 1, rse, None, "J", beside))


def main():
    part = Part(__doc__)
    torch.set_num_threads(1)
    profile = profile_of(part)
    workload = load(target(part)[1]["workload"])
    plan = planned(part, workload, profile)
    root = part.work / "comparison"
    root.mkdir(parents=True)
    write_profile(root, profile)
    folder = budget_folder(root, plan)
    part.add(root=root.name)
    size = f"{len(plan.seeds)} seeds of {len(plan.methods)} methods on {workload.name}"
    part.note(f"{size}, {plan.budget.seconds:g} s of RST each.")
    with Course(phases_of([plan], profile, 1)) as course:
        course.begin(training_of(plan))
        # Without the models, which are too large to be brought home.
        comparison = resume(
            plan,
            profile,
            folder,
            Screen(plan, course),
            checkpoint_seconds=NEVER_SECONDS,
            warn=part.note,
        )
    part.add(report=report.markdown(comparison))
    show(comparison)
    for result in comparison.trainings:
        names = ", ".join(run.method for run in result.runs)
        size = f"{names}, seed {result.runs[0].seed}"
        difference = 100 * (result.rst_seconds / result.measured_seconds - 1)
        part.add(Row("RST over measured seconds, less one", size, 1, difference, None, "%"))
        add_energy(part, result, profile, size)
    for run in comparison.runs:
        if run.failure:
            part.note(f"{run.method}, seed {run.seed}: FAILED: {run.failure}")


if __name__ == "__main__":
    main()
