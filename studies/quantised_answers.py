"""The answers of `quantised.py`: differences with intervals at each precision."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runs import Finding, changed, decide, percent, relative_difference

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find
from baselines.training.results import Point, Run
from timing.statistics import CONFIDENCE

DECAYED, WSD = "decayed", "wsd"
AVERAGES = ("lawa", "ema", "lawa-decayed", "ema-decayed")
METHODS = ("constant", DECAYED, WSD, *AVERAGES)
READINGS = ("float", "int8", "int4", "int3", "int4g32", "int3g32")
# Of which all but the order is asked: coarse enough to be felt, fine enough to be used.
COARSE = "int4"
# From which share of the budget on the rate falls, or has fallen far.
FALLS = {WSD: 0.8, DECAYED: 0.5}


@dataclass(frozen=True)
class Study:
    """What was trained.

    Attributes:
        comparisons: of all methods, one for each budget, from the shortest.
        windows: under the middle one, of LAWA with several windows and its live weights.
        horizons: the share of its training that each window spans, by rate and method.
    """

    comparisons: Sequence[Comparison]
    windows: Comparison
    horizons: Mapping[str, Mapping[str, float]]

    @property
    def long(self) -> Comparison:
        """That of the longest budget."""
        return self.comparisons[-1]


def ends(comparison: Comparison, method: str, reading: str) -> list[float]:
    """The metric on the test part at the end, by seed; NaN where it is not finite."""
    return [run.test_as(reading) for run in comparison.of(method)]


def compare(
    mine: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """By what share the first is worse (above zero); None where one of them is not finite."""
    finite = all(map(math.isfinite, (*mine, *theirs)))
    return relative_difference(mine, theirs, confidence) if finite else None


def in_words(value: Estimate | None) -> str:
    """A difference with its interval."""
    return "NOT FINITE" if value is None else percent(value)


def shown(value: Estimate | None) -> str:
    """What a difference shows by itself."""
    if value is None or value.low is None or value.high is None:
        return ""
    return "BETTER" if value.high < 0 else "WORSE" if value.low > 0 else ""


def against(
    comparison: Comparison, method: str, decay: str, confidence: float = CONFIDENCE
) -> dict[str, Estimate | None]:
    """By what share a method ends worse than a rate that decays, both read alike; by reading."""
    return {
        reading: compare(
            ends(comparison, method, reading), ends(comparison, decay, reading), confidence
        )
        for reading in READINGS
    }


def order(study: Study, method: str, decay: str = DECAYED) -> Finding:
    """Whether an average ends better than a decay in some precision, at equal budgets."""
    found = against(study.long, method, decay)
    # One of so many is soon better by chance.
    careful = against(study.long, method, decay, 1 - (1 - CONFIDENCE) / len(READINGS))
    if any(shown(value) == "BETTER" for value in careful.values()):
        verdict = "supports"
    elif all(shown(value) == "WORSE" for value in found.values()):
        verdict = "refutes"
    else:
        verdict = "does not settle"
    values = ", ".join(f"{reading} {in_words(value)}" for reading, value in found.items())
    return Finding(
        f"in some precision {find(method).title} ends better than the {find(decay).title}",
        verdict,
        f"against its test metric under {seconds(study.long)}, both read alike: {values}; "
        + "; ".join(shown_at(each, method, decay) for each in study.comparisons),
    )


def cost(study: Study, method: str) -> Finding:
    """Whether rounding makes less of an average's metric than of the decayed rate's."""

    def made_of(comparison: Comparison, name: str, reading: str) -> list[float]:
        rounded, exact = (ends(comparison, name, each) for each in (reading, "float"))
        return [a / b for a, b in zip(rounded, exact, strict=True)]

    def beside(comparison: Comparison, reading: str) -> Estimate | None:
        return compare(made_of(comparison, method, reading), made_of(comparison, DECAYED, reading))

    found = beside(study.long, COARSE)
    values = ", ".join(f"{each} {in_words(beside(study.long, each))}" for each in READINGS[1:])
    shorter = (
        f"under {seconds(each)} {COARSE} {in_words(beside(each, COARSE))}"
        for each in study.comparisons[:-1]
    )
    return Finding(
        f"rounding to {COARSE} costs {find(method).title} less than the fully decayed rate",
        decide(found, below=0) if found else "does not settle",
        "; ".join(
            [
                f"what rounding makes of the test metric, beside that rate's: under "
                f"{seconds(study.long)} {values}",
                *shorter,
            ]
        ),
    )


def shown_at(comparison: Comparison, method: str, decay: str) -> str:
    """In which precisions a method is shown to be better or worse under a budget."""
    found = against(comparison, method, decay)
    said = [
        f"{word} as {', '.join(which)}"
        for word in ("BETTER", "WORSE")
        if (which := [reading for reading, value in found.items() if shown(value) == word])
    ]
    return f"under {seconds(comparison)} {' and '.join(said) or 'no difference shown'}"


def seconds(comparison: Comparison) -> str:
    """The budget."""
    return f"{comparison.plan.budget.seconds:g} s"


def added(point: Callable[[str], float], reading: str = COARSE) -> float:
    """The logarithm of what rounding makes of a metric."""
    return math.log(point(reading) / point("float"))


def errors(comparison: Comparison, method: str, reading: str = COARSE) -> list[float]:
    """The rounding error of the weights at the end, relative to them, by seed."""
    return [run.rounded[reading].relative_error for run in comparison.of(method)]


def flatness(study: Study, method: str) -> Finding:
    """Whether the decayed rate loses more to rounding than its weights are off by more.

    The loss is held against the squared error of the weights, as it grows around a minimum.
    """
    title, pair = find(method).title, (DECAYED, method)
    rises = [[added(run.test_as) for run in study.long.of(name)] for name in pair]
    wrong = [errors(study.long, name) for name in pair]
    said = " and ".join(
        f"{percent(changed(estimate(rise), math.expm1))} for {name}"
        for rise, name in zip(rises, ("the decayed rate", title), strict=True)
        if all(map(math.isfinite, rise))
    )
    ratio = compare(wrong[0], wrong[1])
    evidence = (
        f"{COARSE} adds to the test metric {said or 'what is NOT FINITE'}; the rounding error of "
        f"the weights is {statistics.fmean(wrong[0]):.2%} and {statistics.fmean(wrong[1]):.2%} of "
        f"them (the decayed rate's beside the other's {in_words(ratio)})"
    )
    claim = f"for one rounding error of its weights the decayed rate loses more than {title}"
    if not all(math.isfinite(value) for of in (*rises, *wrong) for value in of):
        return Finding(claim, "does not settle", evidence)
    if min(*rises[0], *rises[1]) <= 0:
        return Finding(claim, "does not settle", f"{evidence}; in some seed rounding costs nothing")
    per_error = [
        [rise / off**2 for rise, off in zip(*of, strict=True)]
        for of in zip(rises, wrong, strict=True)
    ]
    sharper = relative_difference(per_error[0], per_error[1])
    return Finding(
        claim,
        decide(sharper, above=0),
        f"{evidence}; over the squared error that is {percent(sharper)} for the decayed rate "
        "beside the other",
    )


def point_at(run: Run, time: float) -> Point:
    """The evaluation that is due at this RST: the first from then on, or the last."""
    return next((point for point in run.points if point.rst_seconds >= time), run.points[-1])


def added_over_time(comparison: Comparison, method: str, reading: str) -> dict[float, list[float]]:
    """What rounding adds on the validation part by seed, by the share of the budget that is spent.

    At each due evaluation at which it is finite for all seeds.
    """
    plan = comparison.plan
    shares = [i / plan.evaluations for i in range(1, plan.evaluations + 1)]
    found = {
        share: [
            added(point_at(run, share * plan.budget.seconds).value_as, reading)
            for run in comparison.of(method)
        ]
        for share in shares
    }
    return {share: of for share, of in found.items() if all(map(math.isfinite, of))}


def falling(study: Study, method: str) -> Finding:
    """Whether what rounding adds grows as the rate falls, beyond what it does at a constant one."""
    start = FALLS[method] * study.long.plan.budget.seconds

    def before_and_after(name: str) -> tuple[list[float], list[float]]:
        runs = study.long.of(name)
        return (
            [added(point_at(run, start).value_as) for run in runs],
            [added(run.points[-1].value_as) for run in runs],
        )

    (early, late), (flat_early, flat_late) = map(before_and_after, (method, "constant"))
    growth = [
        (b - a) - (d - c) for a, b, c, d in zip(early, late, flat_early, flat_late, strict=True)
    ]
    title = find(method).title
    claim = f"what {COARSE} adds grows as the rate falls ({title})"
    if not all(map(math.isfinite, growth)):
        return Finding(claim, "does not settle", "an evaluation is NOT FINITE")
    means = [math.expm1(statistics.fmean(of)) for of in (early, late, flat_early, flat_late)]
    return Finding(
        claim,
        decide(estimate(growth), above=0),
        f"to the validation metric it adds {means[0]:+.1%} at {FALLS[method]:.0%} of the budget "
        f"and {means[1]:+.1%} at its end, under the constant rate {means[2]:+.1%} and "
        f"{means[3]:+.1%}: beyond that rate's it grows by "
        f"{percent(changed(estimate(growth), math.expm1))}",
    )


def window_metrics(study: Study, rate: str, reading: str) -> dict[float, list[float]]:
    """The validation metric of each window at the end, by the share of training that it spans."""
    return {
        share: [run.final_as(reading) for run in study.windows.of(name)]
        for name, share in study.horizons[rate].items()
    }


def window(study: Study, rate: str) -> Finding:
    """Whether a longer window pays more read as int4 than in float."""
    by_reading = {r: window_metrics(study, rate, r) for r in ("float", COARSE, "int3")}
    claim = f"under the {rate} a longer window of LAWA pays more read as {COARSE} than in float"
    if not all(math.isfinite(v) for of in by_reading.values() for vs in of.values() for v in vs):
        return Finding(claim, "does not settle", "an evaluation is NOT FINITE")
    narrow, wide = (choose(study.horizons[rate].values()) for choose in (min, max))
    logs = {
        reading: [math.log(a / b) for a, b in zip(of[wide], of[narrow], strict=True)]
        for reading, of in by_reading.items()
    }
    gain = [a - b for a, b in zip(logs[COARSE], logs["float"], strict=True)]
    said = ", ".join(
        f"{reading} {percent(relative_difference(of[wide], of[narrow]))} (the lowest mean at "
        f"{min(of, key=lambda share: statistics.fmean(of[share])):.1%})"
        for reading, of in by_reading.items()
    )
    return Finding(
        claim,
        decide(estimate(gain), below=0),
        f"under {seconds(study.windows)} a window of {wide:.1%} of training against one of "
        f"{narrow:.1%}, validation metric: {said}",
    )


def findings(study: Study) -> list[Finding]:
    """What the runs say."""
    return [
        *(order(study, method) for method in AVERAGES),
        *(order(study, method, WSD) for method in ("lawa", "ema")),
        *(cost(study, method) for method in AVERAGES),
        *(flatness(study, method) for method in ("lawa", "ema")),
        *(falling(study, method) for method in FALLS),
        *(window(study, rate) for rate in study.horizons),
    ]
