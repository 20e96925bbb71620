"""No Train No Gain's claim: at equal RST the gain vanishes against a fully decayed rate.

(Kaddour et al. 2023, arXiv 2307.06440), at a quarter, a half and the whole of the budget. Figure:
how much worse or better than the fully decayed rate the averages of the constant rate end.
`python studies/equal_rst.py --workload digits`
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import runs
from matplotlib.figure import Figure
from runs import (
    SHORTER,
    TIE,
    Finding,
    bars,
    decide_all,
    in_percent,
    percent,
    relative_difference,
    share_axis,
)

from baselines.analysis.intervals import Estimate
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find

BASELINE, LIVE = "decayed", "constant"
AVERAGES = ("lawa", "ema")


def ends(comparison: Comparison, method: str) -> list[float]:
    """The metric on the test part at the end of the budget."""
    return [run.test for run in comparison.of(method)]


def examine(comparisons: Sequence[Comparison]) -> tuple[list[Finding], dict[str, Any]]:
    """What the runs say, and its numbers; one comparison a budget."""
    findings = []
    numbers: dict[str, Any] = {
        "tie": TIE,
        "budgets_seconds": [comparison.plan.budget.seconds for comparison in comparisons],
        "excess_over_decayed": {
            method: [
                asdict(relative_difference(ends(c, method), ends(c, BASELINE))) for c in comparisons
            ]
            for method in (LIVE, *AVERAGES)
        },
    }
    for method in AVERAGES:
        evidence = []
        for comparison in comparisons:
            mine = ends(comparison, method)
            live, decayed = ends(comparison, LIVE), ends(comparison, BASELINE)
            evidence.append(
                f"after {comparison.plan.budget.seconds:g} s its test metric is "
                f"{percent(relative_difference(mine, live))} of the constant rate's and "
                f"{percent(relative_difference(mine, decayed))} of the fully decayed rate's"
            )
        # No gain is one of less than a tie.
        pairs = [
            (ends(comparison, method), ends(comparison, BASELINE)) for comparison in comparisons
        ]
        findings.append(
            Finding(
                f"at equal RST nothing of the gain of {find(method).title} survives against the "
                f"fully decayed rate (a gain under {TIE:.0%} is none)",
                decide_all(pairs, above=-TIE),
                "; ".join(evidence),
            )
        )
    return findings, numbers


def draw(comparisons: Sequence[Comparison], numbers: dict[str, Any]) -> Figure:
    """The end of each budget against that of the fully decayed rate."""
    plan = comparisons[-1].plan
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    styles = (("black", "o", "-"), ("0.35", "s", "--"), ("0.6", "^", ":"))
    for place, ((method, found), (colour, marker, dash)) in enumerate(
        zip(numbers["excess_over_decayed"].items(), styles, strict=True)
    ):
        values = [in_percent(Estimate(**one)) for one in found]
        # Apart by a hair, so that no interval hides another.
        seconds = [each * 1.02 ** (place - 1) for each in numbers["budgets_seconds"]]
        how = {"color": colour, "marker": marker, "linestyle": dash}
        bars(axes, seconds, values, label=find(method).title, **how)
    share_axis(axes)
    axes.set_xscale("log")
    axes.set_xticks(numbers["budgets_seconds"], [f"{s:g} s" for s in numbers["budgets_seconds"]])
    axes.minorticks_off()
    axes.set_xlabel("budget of reference system time")
    axes.set_ylabel(f"test {plan.workload.metric}:\nworse than the fully decayed rate by [%]")
    axes.set_title(f"{plan.workload.name}: at equal RST, {len(plan.seeds)} seeds, 95% intervals")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    with runs.opened(__doc__, arguments) as trainings:
        comparisons = [trainings.compared(share) for share in (*SHORTER, 1.0)]
        findings, numbers = examine(comparisons)
        trainings.report("equal-rst", findings, numbers, draw(comparisons, numbers))


if __name__ == "__main__":
    main()
