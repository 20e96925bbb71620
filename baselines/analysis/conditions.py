"""Say under which conditions a comparison's tables and verdict hold."""

from __future__ import annotations

import math

from baselines.analysis.tables import TARGET_METHOD
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from timing import Policy, Profile, rse_interval, rst_interval
from timing.calibration.uncertainty import watts_error
from timing.rst.account import reference_joules
from timing.rst.policy import uncharged
from timing.statistics import CONFIDENCE, median_coverage


def conditions(comparison: Comparison) -> str:
    """Return the conditions that the tables and the verdict hold under."""
    plan = comparison.plan
    return (
        f"Budget {plan.budget.seconds:g} s of reference system time a run, on "
        f"{comparison.profile.machine}; {plan.workload.better} is better. "
        f"{_intervals(len(plan.seeds))} "
        f"{_parts(plan)} {_target(comparison)} {_tuning(plan)} Policy {plan.policy}{_free(plan)}. "
        f"{_known_to(comparison)}"
    )


def _free(plan: Plan) -> str:
    if not plan.free:
        return ""
    return f", but {', '.join(plan.free)} FREE: charged to no run, whatever it cost"


def _intervals(seeds: int) -> str:
    if seeds < 2:
        return "One seed, so no interval."
    return (
        f"{seeds} seeds; means and savings with {CONFIDENCE:.0%} t-intervals over them, each "
        "sentence's by itself; a median time with that of the sign test, which here covers the "
        f"true one {median_coverage(seeds):.0%} of the time."
    )


def _parts(plan: Plan) -> str:
    if not plan.read_test:
        return "All on the validation part."
    return (
        "The end of the budget is judged on the test part, read once a run; all else on the "
        "validation part."
    )


def _target(comparison: Comparison) -> str:
    """Say what a run is to reach, and with how many seeds there was nothing to reach."""
    plan = comparison.plan
    if TARGET_METHOD not in plan.names:
        return "Without the constant rate there is no target, and every time to it counts as never."
    said = (
        "Target: what the constant rate ends with on the validation part, seed by seed; times to "
        f"it are known to {plan.resolution_seconds:.2g} s."
    )
    failed = sum(run.failure is not None for run in comparison.of(TARGET_METHOD))
    if failed:
        said += (
            f" With {failed} of {len(plan.seeds)} seeds the constant rate failed, so there was none"
            " and every time to it counts as never."
        )
    return said


def _tuning(plan: Plan) -> str:
    """Say what was set for all, or tried for each."""
    if plan.tried:
        seconds = math.fsum(plan.tuning_rst_seconds.values())
        return (
            f"Tuned on the validation part, {plan.trials} trial(s) a method with a seed of their "
            f"own and the whole budget each: {seconds:.4g} s of RST that are charged to no run."
        )
    rates = {method.name: plan.rate_of(method) for method in plan.methods}
    settings = "; ".join(
        f"{method.name}: " + ", ".join(f"{name}={value}" for name, value in own.items())
        for method in plan.methods
        if (own := method.settings)
    )
    if len(set(rates.values())) > 1:
        of_each = ", ".join(f"{rate:g} for {name}" for name, rate in rates.items())
        said = f"Peak rates of their own: {of_each}"
    else:
        said = f"Peak rate {plan.learning_rate:g} for all, untuned"
    return f"{said}. {settings}." if settings else f"{said}."


def _known_to(comparison: Comparison) -> str:
    """Return how well the reference is known: chance between processes, and additivity error."""
    profile = comparison.profile
    if len(profile.processes) < 2:
        return "The profile rests on one process, so how far its seconds are chance is not known."
    ended = [run for run in comparison.runs if not run.failure]
    if not ended:
        return "No run ended."
    plan, run = comparison.plan, ended[0]
    shares = plan.method(run.method).charged_shares(plan.free)
    counts = {name: times * shares.get(name, 1.0) for name, times in run.counts.items()}
    known = rst_interval(counts, profile, plan.policy, CONFIDENCE)
    return (
        f"The profile's {len(profile.processes)} processes give a run's seconds to "
        f"±{known.half_width:.1%}, with an additivity error of {profile.additivity_error:+.1%}."
        f"{_energy_known_to(counts, profile, plan.policy)}"
    )


def _energy_known_to(counts: dict[str, float], profile: Profile, policy: Policy) -> str:
    """Return whose joules RSE is of and how well it is known; nothing where there is none."""
    charged = {name: times for name, times in counts.items() if name not in uncharged(policy)}
    if reference_joules(charged, profile.joules) is None:
        return ""
    known = rse_interval(counts, profile, policy, CONFIDENCE)
    error = watts_error(profile)
    held = "" if error is None else f", with watts {error:+.1%} off those of the loop"
    return (
        f" RSE is reference system energy, in joules of {profile.joules_of}: known to "
        f"±{known.half_width:.1%}{held}."
    )
