"""Claims of Ajroldi, Orvieto and Geiping (2025, arXiv 2502.06761), on averaging and decay.

Averaging with decay is best or tied; averaging alone does not replace decay; a window of about 1%
of training is best; a long run's average stands in for shorter annealed runs. Figure: a panel each
for ends, windows and shorter runs.
`python studies/averaging_and_decay.py --workload digits`
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import (
    CELLS,
    SHORTER,
    TIE,
    Finding,
    K,
    Runs,
    at,
    bars,
    decide_all,
    in_percent,
    percent,
    relative_difference,
    share_axis,
)

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.ablation import WindowConfig
from baselines.experiment.comparison import Comparison
from baselines.methods.names import find
from baselines.training.results import Run

RIVALS = ("decayed", "lawa", "ema", "constant")
ALONE = ("lawa", "ema")
NARROW = 0.01
# Of the decayed rate; every="auto" ends with the latest tenth, and was trained for all claims.
HORIZONS, AUTO_HORIZON = (NARROW, 0.03, 0.3), 0.1
# Long runs whose averages are read at the end of the shorter ones.
LONG = ("lawa", "lawa-decayed")


def not_worse(mine: Sequence[float], others: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Of the claim that the first is at most tied with each of the others; and the evidence."""
    said = (
        f"{name} {percent(relative_difference(theirs, mine))}" for name, theirs in others.items()
    )
    verdict = decide_all([(theirs, mine) for theirs in others.values()], above=-TIE)
    return verdict, ", ".join(said)


def with_decay(comparison: Comparison) -> Finding:
    """Averaging with decay against all that lack the one or the other, on the test part."""
    tests = {name: [run.test for run in comparison.of(name)] for name in comparison.plan.names}
    verdict, said = not_worse(tests["lawa-decayed"], {name: tests[name] for name in RIVALS})
    return Finding(
        f"averaging with decay is best or tied (worse by under {TIE:.0%} is tied)",
        verdict,
        f"against the test metric of {find('lawa-decayed').title}: {said}; EMA with decay is at "
        f"{percent(relative_difference(tests['ema-decayed'], tests['lawa-decayed']))}",
    )


def alone(comparison: Comparison) -> Finding:
    """Averages of the constant rate against the decayed rate, on the test part."""
    tests = {name: [run.test for run in comparison.of(name)] for name in comparison.plan.names}
    pairs = {method: (tests[method], tests["decayed"]) for method in ALONE}
    said = (
        f"{find(name).title} {percent(relative_difference(*pair))}" for name, pair in pairs.items()
    )
    return Finding(
        f"averaging alone does not replace decay (it is worse by over {TIE:.0%})",
        decide_all(list(pairs.values()), above=TIE),
        f"against the test metric of the fully decayed rate: {', '.join(said)}",
    )


def horizons(comparison: Comparison) -> dict[WindowConfig, float]:
    """How much of a training each cell's window spans at its end, at most all of it."""
    spans = {}
    for cell in CELLS:
        steps = statistics.fmean(run.steps for run in comparison.of(cell.name))
        fixed = isinstance(cell.every, int)
        spans[cell] = min(1.0, cell.k * int(cell.every) / steps) if fixed else AUTO_HORIZON
    return spans


def best_window(rate: str, by_horizon: Mapping[float, Sequence[float]]) -> Finding:
    """Whether the narrowest of these windows, nearest 1%, is best or tied; metric by horizon."""
    narrow = min(by_horizon, key=lambda share: max(share / NARROW, NARROW / share))
    others = {f"{share:.1%}": of for share, of in by_horizon.items() if share != narrow}
    verdict, said = not_worse(by_horizon[narrow], others)
    best = min(by_horizon, key=lambda share: statistics.fmean(by_horizon[share]))
    return Finding(
        f"under the {rate} a window of about {NARROW:.0%} of training is best or tied",
        verdict,
        f"against the validation metric of {narrow:.1%}, windows of: {said}; the lowest mean is at "
        f"{best:.1%} of training",
    )


def stand_in(method: str, long: Comparison, annealed: Mapping[float, Comparison]) -> Finding:
    """A long run's average against shorter runs decayed to end there, on the validation part."""
    pairs = {share: shorter(method, long, short) for share, short in annealed.items()}
    said = (
        f"{percent(relative_difference(*pair))} at {share:.0%} of it"
        for share, pair in pairs.items()
    )
    return Finding(
        f"a long run's average stands in for shorter annealed runs ({find(method).title}, worse "
        f"by at most {TIE:.0%})",
        decide_all(list(pairs.values()), below=TIE),
        "against the validation metric of a run annealed to end there, in shares of the long "
        f"run's budget: {', '.join(said)}",
    )


def shorter(method: str, long: Comparison, short: Comparison) -> tuple[list[float], list[float]]:
    """A long run's metric where the shorter one ends, and that of the shorter one; by seed."""
    end = short.plan.budget.seconds
    return [at(run, end) for run in long.of(method)], [r.final for r in short.of("decayed")]


def examine(
    long: Comparison,
    annealed: Mapping[float, Comparison],
    windows: Comparison,
    decayed_windows: Mapping[float, Sequence[Run]],
) -> tuple[list[Finding], dict[str, Any]]:
    """What the runs say, and its numbers.

    Args:
        long: all methods under the whole budget.
        annealed: under each shorter share of it.
        windows: every cell of the constant rate.
        decayed_windows: LAWA of the decayed rate by its window, as a share of training.
    """
    spans = horizons(windows)
    finals = {cell: [run.final for run in windows.of(cell.name)] for cell in CELLS}
    # Two cells of one horizon would be one: those of the longest k, "auto" left to the other claim.
    constant = {spans[c]: finals[c] for c in CELLS if c.k == K and c.every != "auto"}
    decayed = {share: [run.final for run in found] for share, found in decayed_windows.items()}
    findings = [
        with_decay(long),
        alone(long),
        best_window("constant rate", constant),
        best_window("decayed rate", decayed),
        *(stand_in(method, long, annealed) for method in LONG),
    ]
    numbers = {
        "tie": TIE,
        "test_metric": {
            name: asdict(estimate([run.test for run in long.of(name)])) for name in long.plan.names
        },
        "windows_constant_rate": [
            {
                "k": cell.k,
                "every": cell.every,
                "share_of_training": spans[cell],
                "metric": asdict(estimate(finals[cell])),
            }
            for cell in CELLS
        ],
        "windows_decayed_rate": [
            {"share_of_training": share, "metric": asdict(estimate(values))}
            for share, values in decayed.items()
        ],
        "excess_over_annealed": {
            method: {
                str(share): asdict(relative_difference(*shorter(method, long, short)))
                for share, short in annealed.items()
            }
            for method in (*LONG, "constant", "decayed")
        },
    }
    return findings, numbers


def draw(long: Comparison, numbers: Mapping[str, Any]) -> Figure:
    """Ends, windows and shorter runs."""
    plan = long.plan
    figure = Figure(figsize=(14, 5), layout="constrained")
    ends, windows, runs_ = figure.subplots(1, 3)
    draw_ends(ends, numbers["test_metric"])
    ends.set_xlabel(f"test {plan.workload.metric} at the end")
    draw_windows(windows, numbers)
    windows.set_ylabel(f"validation {plan.workload.metric} at the end")
    draw_shorter(runs_, numbers["excess_over_annealed"])
    runs_.set_ylabel("validation metric: worse than a run\nannealed to end there by [%]")
    for axes in (ends, windows, runs_):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{plan.workload.name}, {plan.budget.seconds:g} s of RST, {len(plan.seeds)} seeds, 95% "
        "intervals: averaging and decay (lower is better)"
    )
    return figure


def draw_ends(axes: Axes, metrics: Mapping[str, Any]) -> None:
    for place, (name, found) in enumerate(metrics.items()):
        value = Estimate(**found)
        known = [each for each in (value.low, value.mean, value.high) if each is not None]
        marker = "o" if "decayed" in name else "s"
        filled = "black" if "-decayed" in name else "white"
        how: dict[str, Any] = {
            "color": "black",
            "marker": marker,
            "markerfacecolor": filled,
            "markersize": 8,
        }
        axes.plot(known, [place] * len(known), markevery=[len(known) // 2], **how)
    axes.set_yticks(range(len(metrics)), [find(name).title for name in metrics])
    axes.invert_yaxis()


def draw_windows(axes: Axes, numbers: Mapping[str, Any]) -> None:
    def one(found: Sequence[Mapping[str, Any]], label: str, **how: Any) -> None:
        ordered = sorted(found, key=lambda window: window["share_of_training"])
        values = [Estimate(**window["metric"]) for window in ordered]
        bars(axes, [100 * w["share_of_training"] for w in ordered], values, label=label, **how)

    cells = numbers["windows_constant_rate"]
    for k, marker, grey in ((2, "^", "0.6"), (K, "s", "0.3")):
        fixed = [cell for cell in cells if cell["k"] == k and cell["every"] != "auto"]
        one(fixed, f"constant rate, k={k}", color=grey, marker=marker, linestyle="--")
    auto = [cell for cell in cells if cell["k"] == K and cell["every"] == "auto"]
    one(auto, f'constant rate, k={K}, "auto"', color="black", marker="*", linestyle="none")
    one(numbers["windows_decayed_rate"], f"decayed rate, k={K}", color="black", marker="o")
    axes.set_xscale("log")
    axes.set_xlabel("window, k x every, as a share of training [%]")
    axes.legend(fontsize=8)


def draw_shorter(axes: Axes, differences: Mapping[str, Any]) -> None:
    marks = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."))
    for place, ((name, found), (marker, dash)) in enumerate(
        zip(differences.items(), marks, strict=True)
    ):
        values = [in_percent(Estimate(**value)) for value in found.values()]
        shares = [100 * float(share) + (place - 1.5) for share in found]
        grey = "black" if name in LONG else "0.5"
        label = f"long run: {find(name).title}"
        bars(axes, shares, values, label=label, color=grey, marker=marker, linestyle=dash)
    share_axis(axes)
    axes.set_xlabel("end of the annealed run [% of budget]")
    axes.legend(fontsize=8)


def trained(trainings: Runs) -> tuple[Any, ...]:
    """The arguments of `examine`, trained or found."""
    long = trainings.compared()
    own = long.of("lawa-decayed")
    steps = statistics.median(run.steps for run in own)
    decayed_windows = {AUTO_HORIZON: own}
    for horizon in HORIZONS:
        every = max(1, round(horizon * steps / K))
        decayed_windows[every * K / steps] = trainings.lawa_decayed(every)
    annealed = {share: trainings.compared(share) for share in SHORTER}
    return long, annealed, trainings.windows(), decayed_windows


def main(arguments: Sequence[str] | None = None) -> None:
    with runs.opened(__doc__, arguments) as trainings:
        found = trained(trainings)
        findings, numbers = examine(*found)
        trainings.report("averaging-and-decay", findings, numbers, draw(found[0], numbers))


if __name__ == "__main__":
    main()
