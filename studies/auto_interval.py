"""Our claim: every="auto" is as good as the best fixed interval at every moment of training.

The best fixed one is chosen anew at each moment, for each seed by the mean of the others, so that
neither luck nor the lack of it is part of the choice. Figure: how much worse or better than it each
interval is over training. All of them read one training of the constant rate a seed.
`python studies/auto_interval.py --workload digits`
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import runs
from matplotlib.figure import Figure
from runs import (
    INTERVALS,
    TIE,
    Finding,
    K,
    Pair,
    at,
    bars,
    decide,
    decide_all,
    in_percent,
    percent,
    relative_difference,
    share_axis,
)

from baselines.analysis.intervals import Estimate
from baselines.experiment.ablation import WindowConfig
from baselines.experiment.comparison import Comparison

AUTO = WindowConfig(K, "auto")
FIXED = [WindowConfig(K, every) for every in INTERVALS]


def best_fixed(values: Mapping[WindowConfig, Sequence[float]]) -> list[WindowConfig]:
    """For each seed the fixed interval that is best by the mean of the other seeds."""
    seeds = range(len(values[AUTO]))
    return [
        min(
            FIXED,
            # One seed has no others.
            key=lambda cell: statistics.fmean(
                [v for s, v in enumerate(values[cell]) if s != seed] or values[cell]
            ),
        )
        for seed in seeds
    ]


def examine(comparison: Comparison) -> tuple[list[Finding], dict[str, Any]]:
    """What the runs say, and its numbers."""
    plan = comparison.plan
    times = [plan.budget.seconds * i / plan.evaluations for i in range(1, plan.evaluations + 1)]
    pairs: list[Pair] = []
    moments: list[dict[str, Any]] = []
    for time in times:
        values = {cell: [at(r, time) for r in comparison.of(cell.name)] for cell in (AUTO, *FIXED)}
        best = best_fixed(values)
        rival = [values[cell][seed] for seed, cell in enumerate(best)]
        pairs.append((values[AUTO], rival))
        moments.append(
            {
                "rst_seconds": time,
                "best_fixed": [cell.every for cell in best],
                "excess_over_best_fixed": {
                    str(cell.every): asdict(relative_difference(of, rival))
                    for cell, of in values.items()
                },
            }
        )
    differences = [relative_difference(*pair) for pair in pairs]
    words = [decide(value, below=TIE) for value in differences]
    worst = max(range(len(times)), key=lambda moment: differences[moment].mean)
    rivals = {
        cell.every: max(m["excess_over_best_fixed"][str(cell.every)]["mean"] for m in moments)
        for cell in FIXED
    }
    steadiest = min(rivals, key=lambda every: rivals[every])
    chosen = sorted({every for moment in moments for every in moment["best_fixed"]})
    finding = Finding(
        f'every="auto" is at most {TIE:.0%} worse than the best fixed interval at every moment of '
        "training",
        decide_all(pairs, below=TIE),
        f"borne out at {words.count('supports')} of {len(times)} evaluations, contradicted at "
        f"{words.count('refutes')}; the best fixed interval is one of {chosen}; auto is at worst "
        f"{percent(differences[worst])} of it, after {times[worst]:.3g} s, and "
        f"{percent(differences[-1])} at the end; the steadiest fixed one, every={steadiest}, is at "
        f"worst {rivals[steadiest]:+.1%} of it",
    )
    return [finding], {"tie": TIE, "k": K, "moments": moments}


def draw(comparison: Comparison, numbers: dict[str, Any]) -> Figure:
    """Each interval against the best fixed one of the moment."""
    plan = comparison.plan
    moments = numbers["moments"]
    times = [moment["rst_seconds"] for moment in moments]
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()

    def differences(every: str) -> list[float]:
        return [100 * m["excess_over_best_fixed"][every]["mean"] for m in moments]

    dashes = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))
    for cell, dash, marker in zip(FIXED, dashes, "sDv^x+", strict=True):
        how: dict[str, Any] = {"marker": marker, "markersize": 4, "linewidth": 1, "linestyle": dash}
        axes.plot(
            times, differences(str(cell.every)), color="0.45", label=f"every={cell.every}", **how
        )
    found = [moment["excess_over_best_fixed"]["auto"] for moment in moments]
    values = [in_percent(Estimate(**one)) for one in found]
    how = {"color": "black", "marker": "o", "linewidth": 2}
    bars(axes, times, values, label='every="auto", with 95% interval', **how)
    share_axis(axes)
    axes.set_xlabel("reference system time [s]")
    axes.set_ylabel(
        f"validation {plan.workload.metric}:\nworse than the best fixed interval by [%]"
    )
    axes.set_title(f"{plan.workload.name}: k={K}, constant rate, {len(plan.seeds)} seeds")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    with runs.opened(__doc__, arguments) as trainings:
        comparison = trainings.windows()
        findings, numbers = examine(comparison)
        trainings.report("auto-interval", findings, numbers, draw(comparison, numbers))


if __name__ == "__main__":
    main()
