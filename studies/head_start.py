"""LAWA's claim: the average is ahead of the live weights for most of training.

And by how much that head start shrinks towards the end under a decayed rate (Kaddour 2022, arXiv
2209.14981). Figure: RST and steps saved to each level of loss, under the constant rate and the
decayed one. `python studies/head_start.py --workload digits`
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import runs
from matplotlib.figure import Figure
from runs import Finding, at, bars, decide, percent, relative_difference

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.comparison import Comparison
from baselines.training.results import Point, Run

PAIRS = {"constant rate": ("constant", "lawa"), "decayed rate": ("decayed", "lawa-decayed")}
LEVELS = 12


def arrival(run: Run, level: float) -> Point:
    """The first evaluation at a level of the metric or below it; the last if there is none."""
    return next((point for point in run.points if point.value <= level), run.points[-1])


def saved(live: Sequence[Run], average: Sequence[Run], levels: Sequence[float]) -> dict[str, Any]:
    """RST and steps that the average saves to a level of each seed, which its live run reaches.

    An average that never reaches it is counted as arriving at its end, which flatters it.
    """
    theirs = map(arrival, live, levels)
    mine = map(arrival, average, levels)
    pairs = list(zip(theirs, mine, strict=True))
    return {
        "level": statistics.fmean(levels),
        "rst_seconds_saved": [b.rst_seconds - a.rst_seconds for b, a in pairs],
        "steps_saved": [b.step - a.step for b, a in pairs],
        "never_reached": sum(
            all(point.value > level for point in run.points)
            for run, level in zip(average, levels, strict=True)
        ),
    }


def curve(live: Sequence[Run], average: Sequence[Run], budget: float) -> list[dict[str, Any]]:
    """`saved`, from the best of the live weights by a tenth of the budget down to their best."""
    high = min(best_until(run, 0.1 * budget) for run in live)
    # That every live run reaches.
    low = max(best_until(run, budget) for run in live)
    shares = [i / (LEVELS - 1) for i in range(LEVELS)] if low < high else [1.0]
    levels = [max(low, high * (low / high) ** share) for share in shares]
    return [saved(live, average, [level] * len(live)) for level in levels]


def best_until(run: Run, seconds: float) -> float:
    """The lowest metric up to the evaluation that is due at this RST."""
    earlier = (point.value for point in run.points if point.rst_seconds < seconds)
    return min([*earlier, at(run, seconds)])


def examine(comparison: Comparison) -> tuple[list[Finding], dict[str, Any]]:
    """What the runs say, and its numbers."""
    plan = comparison.plan
    budget = plan.budget.seconds
    findings, numbers = [], {}
    for name, (live_name, average_name) in PAIRS.items():
        live, average = comparison.of(live_name), comparison.of(average_name)
        times = [budget * i / plan.evaluations for i in range(1, plan.evaluations + 1)]
        leads = [
            relative_difference([at(r, t) for r in live], [at(r, t) for r in average])
            for t in times
        ]
        moments = [decide(lead, above=0) for lead in leads]
        ahead, late = moments.count("supports"), moments.count("refutes")
        half = len(times) / 2
        verdict = "supports" if ahead > half else "refutes" if late >= half else "does not settle"
        findings.append(
            Finding(
                f"under the {name} LAWA is ahead of the live weights for most of training",
                verdict,
                f"shown ahead at {ahead} of {len(times)} evaluations and behind at {late}; "
                f"against its metric that of the live weights is "
                f"{percent(leads[len(times) // 2 - 1])} at half of the budget and "
                f"{percent(leads[-1])} at the end",
            )
        )
        shares = {
            share: saved(live, average, [best_until(run, share * budget) for run in live])
            for share in (0.5, 1.0)
        }
        findings.append(shrinking(name, shares, plan.resolution_seconds))
        numbers[name] = {
            "leads": [asdict(lead) for lead in leads],
            "levels": curve(live, average, budget),
            "at_half": shares[0.5],
            "at_end": shares[1.0],
        }
    return findings, {"resolution_seconds": plan.resolution_seconds, "rates": numbers}


def shrinking(name: str, shares: dict[float, dict[str, Any]], resolution: float) -> Finding:
    """Of the head start in RST from the level at half of the budget to that at the end."""
    half, end = (shares[share]["rst_seconds_saved"] for share in (0.5, 1.0))
    shrink = estimate([a - b for a, b in zip(half, end, strict=True)])
    if shrink.low is not None and shrink.high is not None:
        # Each time of the average may be late by up to a step of the grid.
        shrink = Estimate(shrink.mean, shrink.low - resolution, shrink.high + resolution)
    verdict = decide(shrink, above=0)
    never = shares[1.0]["never_reached"]
    if verdict == "refutes" and never:
        verdict = "does not settle"
    steps = [statistics.fmean(shares[share]["steps_saved"]) for share in (0.5, 1.0)]
    missed = f" (never reached in {never} of {len(end)} seeds, counted as at the end)"
    interval = "one seed, no interval"
    if shrink.low is not None:
        interval = f"[{shrink.low:+.2f}, {shrink.high:+.2f}] with a step of the grid"
    return Finding(
        f"under the {name} LAWA's head start shrinks towards the end",
        verdict,
        f"to the best of the live weights by half of the budget LAWA saves "
        f"{statistics.fmean(half):.2f} s of RST ({steps[0]:.0f} steps), to their best of all "
        f"{statistics.fmean(end):.2f} s ({steps[1]:.0f} steps){missed if never else ''}; it "
        f"shrinks by {shrink.mean:.2f} s, {interval}",
    )


def draw(comparison: Comparison, numbers: dict[str, Any]) -> Figure:
    """RST and steps saved, over the level of loss."""
    plan = comparison.plan
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = {"rst_seconds_saved": "RST saved [s]", "steps_saved": "steps saved"}
    styles = (("black", "o", "-"), ("0.5", "s", "--"))
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, found), (colour, marker, dash) in zip(
            numbers["rates"].items(), styles, strict=True
        ):
            levels = [level["level"] for level in found["levels"]]
            values = [estimate(level[key]) for level in found["levels"]]
            how = {"color": colour, "marker": marker, "linestyle": dash}
            bars(axes, levels, values, label=f"LAWA of the {name}", **how)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.invert_xaxis()
        axes.set_xlabel(f"level of validation {plan.workload.metric}, better to the right")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"{plan.workload.name}: head start of LAWA over its live weights\n"
        f"{len(plan.seeds)} seeds, 95% intervals; times are known to "
        f"{plan.resolution_seconds:.2g} s"
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    with runs.opened(__doc__, arguments) as trainings:
        comparison = trainings.compared()
        findings, numbers = examine(comparison)
        trainings.report("head-start", findings, numbers, draw(comparison, numbers))


if __name__ == "__main__":
    main()
