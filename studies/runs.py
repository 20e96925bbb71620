"""What the four claims share: their trainings, made when first asked for and kept in a folder."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import folders
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines.analysis.intervals import Estimate, estimate
from baselines.experiment.ablation import WindowConfig, methods_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.experiment.store import budget_folder
from baselines.methods.names import find
from baselines.training.events import Ended, Event
from baselines.training.results import Run
from baselines.workloads import load
from timing import Budget, Profile, parse_seconds
from timing.statistics import CONFIDENCE

METHODS = ("constant", "ema", "lawa", "decayed", "lawa-decayed", "ema-decayed")
# The shorter budgets, at which only these are compared.
SHORTER, SHORTER_METHODS = (0.25, 0.5), ("constant", "ema", "lawa", "decayed")
# Over the whole budget; each of SHORTER, and a tenth, is on both grids.
EVALUATIONS, WINDOW_EVALUATIONS = 40, 20
K = 5
INTERVALS = (2, 5, 12, 30, 80, 200)
CELLS = [WindowConfig(k, every) for every in ("auto", *INTERVALS) for k in (2, K)]
# A metric worse by less than this share of another one is tied with it.
TIE = 0.01


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim."""

    claim: str
    verdict: str
    evidence: str

    def __str__(self) -> str:
        return f'{self.verdict.upper()} "{self.claim}": {self.evidence}'


def decide(value: Estimate, *, above: float = -math.inf, below: float = math.inf) -> str:
    """Of the claim that a value is above the one, or below the other: what its interval bears."""
    if value.low is None or value.high is None:
        return "does not settle"
    if above < value.low and value.high < below:
        return "supports"
    return "refutes" if value.high < above or value.low > below else "does not settle"


Pair = tuple[Sequence[float], Sequence[float]]


def decide_all(pairs: Sequence[Pair], *, above: float = -math.inf, below: float = math.inf) -> str:
    """Of the claim that the relative difference of each pair is above the one, or below the other.

    It is supported if each pair supports it by itself. Among many pairs one is soon refuted by
    chance, so that the 5% are divided by their number.
    """
    if all(
        decide(relative_difference(*pair), above=above, below=below) == "supports" for pair in pairs
    ):
        return "supports"
    confidence = 1 - (1 - CONFIDENCE) / len(pairs)
    wide = [
        decide(relative_difference(*pair, confidence), above=above, below=below) for pair in pairs
    ]
    return "refutes" if "refutes" in wide else "does not settle"


def relative_difference(
    mine: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """By how much the first is worse (above zero) than the second, as its share; paired by seed.

    Mean and interval are of the logarithms of the ratios, so that it is all the same which of the
    two is the first.
    """
    logs = [math.log(a / b) for a, b in zip(mine, theirs, strict=True)]
    return changed(estimate(logs, confidence), math.expm1)


def percent(value: Estimate) -> str:
    """A share with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:+.1%} (one seed, no interval)"
    return f"{value.mean:+.1%} [{value.low:+.1%}, {value.high:+.1%}]"


def changed(value: Estimate, how: Callable[[float], float]) -> Estimate:
    """Mean and ends of the interval, each changed in this way."""
    low, high = (None if end is None else how(end) for end in (value.low, value.high))
    return Estimate(how(value.mean), low, high)


def in_percent(value: Estimate) -> Estimate:
    """Of a share."""
    return changed(value, lambda share: 100 * share)


def bars(axes: Axes, x: Sequence[float], values: Sequence[Estimate], **how: Any) -> None:
    """Means and their intervals."""
    low = [0.0 if value.low is None else value.mean - value.low for value in values]
    high = [0.0 if value.high is None else value.high - value.mean for value in values]
    means = [value.mean for value in values]
    axes.errorbar(x, means, yerr=[low, high], capsize=3, markersize=6, **how)


def share_axis(axes: Axes) -> None:
    """Let y be shares in per cent, even where few are near zero, and show what is tied."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhspan(-100 * TIE, 100 * TIE, color="0.9", label=f"tied, within {TIE:.0%}")
    axes.set_yscale("symlog", linthresh=2)
    low, high = axes.get_ylim()
    sizes = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)
    ticks = [tick for size in sizes for tick in (-size, size) if low <= tick <= high]
    axes.set_yticks([0, *ticks], ["0", *(f"{tick:+d}" for tick in ticks)])
    axes.minorticks_off()


def at(run: Run, seconds: float) -> float:
    """The metric at the evaluation that is due at this RST: the first from then on, or the last."""
    later = [point.value for point in run.points if point.rst_seconds >= seconds]
    return later[0] if later else run.final


@dataclass(frozen=True)
class Runs:
    """The trainings of one workload.

    Attributes:
        plan: of the whole budget.
        profile: of the reference machine.
        root: where they are kept.
        out: where figures and numbers go.
    """

    plan: Plan
    profile: Profile
    root: Path
    out: Path

    def compared(self, share: float = 1.0) -> Comparison:
        """All methods under this share of the budget; under less of it those of SHORTER_METHODS."""
        plan = self.plan
        if share < 1:
            plan = replace(
                plan,
                methods=tuple(map(find, SHORTER_METHODS)),
                budget=Budget(plan.budget.seconds * share),
                evaluations=round(plan.evaluations * share),
            )
        return self._resume(plan, budget_folder(self.root, plan))

    def lawa_decayed(self, every: int) -> list[Run]:
        """LAWA of the decayed rate with another interval; the test part is not read."""
        plan = replace(
            self.plan,
            methods=(find("lawa-decayed").with_settings({"lawa.every": every}),),
            read_test=False,
        )
        path = budget_folder(self.root, plan)
        return list(self._resume(plan, path.with_name(f"{path.name}-every-{every}")).runs)

    def windows(self) -> Comparison:
        """Every window of CELLS, and the live weights, on one training of the constant rate."""
        plan = replace(
            self.plan,
            methods=methods_of(CELLS),
            evaluations=WINDOW_EVALUATIONS,
            read_test=False,
        )
        path = budget_folder(self.root, plan)
        return self._resume(plan, path.with_name(f"{path.name}-ablation"))

    def _resume(self, plan: Plan, path: Path) -> Comparison:
        return ended(resume(plan, self.profile, path, say))

    def report(
        self, name: str, findings: Sequence[Finding], numbers: dict[str, Any], figure: Figure
    ) -> None:
        """Print what was found, and write the figure and the numbers."""
        plan = self.plan
        conditions = (
            f"{plan.workload.name}, {plan.budget.seconds:g} s of RST a run, {len(plan.seeds)} "
            f"seeds, {CONFIDENCE:.0%} intervals over them, paired, each by itself; a claim of "
            f"several parts is refuted at {1 - CONFIDENCE:.0%} for all of them together; "
            f"{self.profile.machine}"
        )
        for finding in findings:
            print(finding)
        print(f"({conditions})")
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{name}-{plan.workload.name}"
        figure.savefig(path.with_suffix(".png"), dpi=120)
        document = {
            "workload": plan.workload.name,
            "metric": plan.workload.metric,
            "budget_seconds": plan.budget.seconds,
            "seeds": list(plan.seeds),
            "conditions": conditions,
            "findings": [asdict(finding) for finding in findings],
            **numbers,
        }
        path.with_suffix(".json").write_text(json.dumps(document, indent=1, allow_nan=False))
        print(f"{path}.png, {path}.json")


def say(event: Event) -> None:
    """Print a line on standard error for each training that has ended, now or before."""
    if isinstance(event, Ended):
        first, *others = (run.method for run in event.runs)
        names = f"{first} and {len(others)} more" if others else first
        print(f"{names}, seed {event.seed}: {event.measured_seconds:.1f} s", file=sys.stderr)


def ended(comparison: Comparison) -> Comparison:
    """A comparison whose every run has ended well; a claim is not judged by what is left of it."""
    for run in comparison.runs:
        if run.failure:
            sys.exit(f"error: {run.method}, seed {run.seed}, failed: {run.failure}")
    return comparison


@contextmanager
def opened(about: str, arguments: Sequence[str] | None) -> Iterator[Runs]:
    """The trainings that the command line asks for; no other process works on them meanwhile."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--workload", choices=("pydocs", "digits"), default="pydocs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", help="RST of a run; default: 30s, digits 5s")
    parser.add_argument("--reference", type=Path, help="profile; default: measured now")
    parser.add_argument(
        "--folder", type=Path, default=Path("lawa-runs"), help="keeps the trainings"
    )
    parser.add_argument("--out", type=Path, default=Path("claims"), help="for figure and numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1: {options.seeds}")
    try:
        workload = load(options.workload)
        seconds = parse_seconds(options.budget) if options.budget else workload.budget_seconds
        plan = Plan(
            workload=workload,
            methods=tuple(map(find, METHODS)),
            seeds=tuple(range(options.seeds)),
            budget=Budget(seconds),
            learning_rate=workload.learning_rate,
            evaluations=EVALUATIONS,
        )
    except ValueError as error:
        parser.error(str(error))
    shorter = replace(
        plan,
        methods=tuple(map(find, SHORTER_METHODS)),
        budget=Budget(seconds * min(SHORTER)),
    )
    with folders.opened(parser, options, [[plan]], [shorter]) as kept:
        (root,) = kept.roots
        yield Runs(plan, kept.profile, root, options.out)
