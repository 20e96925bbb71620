"""Show what trainings took where they ran, beside their RST: seconds, load, GPUs and joules."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baselines.analysis.charges import RSE
from baselines.experiment.comparison import Comparison
from baselines.training.measurement import Measurement
from baselines.training.results import TrainingResult
from timing import Profile, rst_interval
from timing.rst.account import reference_joules

# More methods of one training are counted and not named.
_NAMED = 2
# Of the time: beyond this, what first steps took more than others is told.
_FIRST = 0.005
# Reasons why something is not measured, in words that are shown.
_SHOWN = 3


@dataclass(frozen=True)
class Taken:
    """What one training took here.

    Attributes:
        methods: that follow it.
        rst_seconds: of all that ran but evaluations, a shared step once.
        rse_joules: of the same on the reference; None where it has none.
        seconds: measured of the same; of all ranks together.
        allowed: the least and the most that measured seconds may be of RST, as far as the profile
            is known: chance between its processes, and its additivity error.
        other_cores: that other processes kept busy meanwhile.
        measurement: all else.
    """

    methods: tuple[str, ...]
    rst_seconds: float
    rse_joules: float | None
    seconds: float
    allowed: tuple[float, float]
    other_cores: float
    measurement: Measurement

    @property
    def over_rst(self) -> float:
        """Return measured seconds over RST."""
        return self.seconds / self.rst_seconds

    @property
    def is_off(self) -> bool:
        """Say whether they differ by more than the profile allows."""
        low, high = self.allowed
        return not low <= self.over_rst <= high


def taken(comparison: Comparison) -> list[Taken]:
    """Return what each training took; those of which nothing is known are left out.

    So are those of a folder whose operations the profile does not know.
    """
    known = comparison.profile.seconds.keys()
    return [
        _taken(result, measurement, comparison.profile)
        for result in comparison.trainings
        if (measurement := result.measurement)
        and result.rst_seconds > 0
        and result.measured_seconds > 0
        and any(measurement.operations.values())
        and known >= {*measurement.operations, *_in_passes(measurement)}
    ]


def _in_passes(measurement: Measurement) -> set[str]:
    return {name for timed in measurement.phases.values() for name in timed.operations}


def _taken(result: TrainingResult, measurement: Measurement, profile: Profile) -> Taken:
    known = rst_interval(measurement.operations, profile, "mlperf")
    # The medians of a real loop add up to this much more than its seconds.
    error = profile.additivity_error
    ends = [
        end / known.estimate / (1 + off)
        for end in (known.low, known.high)
        for off in (min(0.0, error), max(0.0, error))
    ]
    return Taken(
        methods=tuple(run.method for run in result.runs),
        rst_seconds=result.rst_seconds,
        rse_joules=reference_joules(measurement.operations, profile.joules),
        seconds=result.measured_seconds * measurement.ranks,
        allowed=(min(ends), max(ends)),
        other_cores=result.other_cores,
        measurement=measurement,
    )


def sentences(comparison: Comparison) -> list[str]:
    """Return how far RST was from measured time, and a warning where that is more than is known."""
    found = taken(comparison)
    if not found:
        return []
    ratios = [each.over_rst for each in found]
    of = "1 training" if len(found) == 1 else f"{len(found)} trainings"
    said = f"Measured seconds were {_middle(ratios)} times RST in {of}."
    lines = [said]
    if off := [each for each in found if each.is_off]:
        low = min(each.allowed[0] for each in off)
        high = max(each.allowed[1] for each in off)
        cores = statistics.median(each.other_cores for each in off)
        first = statistics.median(each.measurement.first_seconds / each.seconds for each in off)
        warming_up = f" and {first:.1%} of the time went into first steps" if first > _FIRST else ""
        lines.append(
            f"WARNING: in {len(off)} of {of} that is outside the {low:.3g} to {high:.3g} to which "
            f"the profile is known, while other processes kept {cores:.2g} cores busy"
            f"{warming_up}: seconds here are not those of the reference. RST counts operations, "
            "and stays what it is."
        )
    again = [each for each in found if each.measurement.processes > 1]
    if again:
        lines.append(
            f"{len(again)} of {of} went on in another process: seconds are those of all of them, "
            "without what was trained after the latest checkpoint and lost."
        )
    return lines


def not_measured(comparison: Comparison) -> list[str]:
    """Return what could not be measured and why, in a sentence; empty where nothing is missing."""
    unavailable = (why for each in taken(comparison) for why in each.measurement.unavailable)
    if not (reasons := list(dict.fromkeys(unavailable))):
        return []
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return [f"Not measured: {'; '.join(reasons[:_SHOWN])}{more}."]


def trainings(comparison: Comparison) -> list[list[str]]:
    """Return what trainings took, medians and ranges over seeds; the first row heads.

    Empty where nothing is known. A column of what no training tells is left out.
    """
    groups: dict[tuple[str, ...], list[Taken]] = {}
    for each in taken(comparison):
        groups.setdefault(each.methods, []).append(each)
    columns: dict[str, Callable[[Taken], float | None]] = {
        "RST, s": lambda each: each.rst_seconds,
        RSE: lambda each: each.rse_joules,
        "measured, s": lambda each: each.seconds,
        "measured / RST": lambda each: each.over_rst,
        "CPU, s": lambda each: each.measurement.cpu_seconds,
        "other cores": lambda each: each.other_cores,
        "GPU active, s": lambda each: each.measurement.gpu_active_seconds,
        "GPU, J": lambda each: each.measurement.gpu_joules,
        "processors, J": lambda each: each.measurement.host_joules,
    }
    everything = [each for group in groups.values() for each in group]
    told = {
        name: of for name, of in columns.items() if any(of(each) is not None for each in everything)
    }
    if not everything:
        return []
    titles = comparison.plan.titles
    return [
        ["training of", *told],
        *(
            [
                _listed([titles[name] for name in methods]),
                *(_cell(group, of) for of in told.values()),
            ]
            for methods, group in groups.items()
        ),
    ]


def operations(comparison: Comparison) -> list[list[str]]:
    """Return what ran in a pass, its median here and by the profile; the first row heads.

    Empty where nothing is known.
    """
    profile = comparison.profile.seconds
    medians: dict[str, list[float]] = {}
    reference: dict[str, float] = {}
    passes: dict[str, int] = {}
    for each in taken(comparison):
        measurement = each.measurement
        for kind, timed in measurement.phases.items():
            if timed.phase.median_seconds is None:
                continue
            medians.setdefault(kind, []).append(timed.phase.median_seconds)
            passes[kind] = passes.get(kind, 0) + timed.phase.count
            reference[kind] = sum(profile[name] * n for name, n in timed.operations.items())
        for name, seconds in measurement.operation_seconds.items():
            # Of a pass that ran nothing else there is a line already.
            if name not in measurement.phases:
                alone = f"{name}, by difference"
                medians.setdefault(alone, []).append(seconds)
                reference[alone] = profile[name]
    if not medians:
        return []
    return [
        ["what ran", "passes", "median here", "reference", "here / reference"],
        *(
            [
                kind,
                f"{passes[kind]:,}" if kind in passes else "·",
                f"{1e3 * statistics.median(found):.4g} ms",
                f"{1e3 * reference[kind]:.4g} ms",
                f"{statistics.median(found) / reference[kind]:.3g}",
            ]
            for kind, found in medians.items()
        ),
    ]


def _cell(group: Sequence[Taken], of: Callable[[Taken], float | None]) -> str:
    known = [value for each in group if (value := of(each)) is not None]
    if not known:
        return "not measured"
    missing = f", {len(group) - len(known)} not measured" if len(known) < len(group) else ""
    return f"{_middle(known)}{missing}"


def _middle(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.3g}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.3g} to {max(values):.3g})"


def _listed(titles: Sequence[str]) -> str:
    if len(titles) <= _NAMED + 1:
        return ", ".join(titles)
    return f"{', '.join(titles[:_NAMED])} and {len(titles) - _NAMED} more"
