"""Warnings about a profile that is otherwise whole: nothing here is refused, all is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from timing.calibration.profile import Profile
from timing.calibration.uncertainty import rst_interval, watts_error

# A slipped digit is a factor of ten; what a machine does to an operation by chance is less than 3.
ORDER_OF_MAGNITUDE = 3.0
LEAST_PROCESSES = 5
# Of the RST of the reference iteration, either side.
PRECISION = 0.02
# Beyond this, what operations draw by themselves is not what they draw in a loop.
MAX_WATTS_ERROR = 0.1
# Above the coolest beginning of a process; others are to cool to it.
COOL_MARGIN_CELSIUS = 5.0


def profile_warnings(profile: Profile) -> tuple[str, ...]:
    """Return what a careful reader should know of a profile, in words; empty if it is sound."""
    found = []
    count = len(profile.processes)
    if count < LEAST_PROCESSES:
        found.append(
            f"{count} process(es): at least {LEAST_PROCESSES} are needed for an interval to trust"
        )
    if count > 1:
        half_width = rst_interval(profile.reference_iteration, profile, "mlperf").half_width
        if half_width > PRECISION:
            found.append(
                f"the RST of the reference iteration is known to ±{half_width:.1%} only: give the "
                "calibration more time, or a quieter machine"
            )
    probes = [
        process.cpu_probe_seconds for process in profile.processes if process.cpu_probe_seconds
    ]
    known_probe = min(probes, default=None)
    for number, process in enumerate(profile.processes, start=1):
        found += [f"process {number}: {error}" for error in process.errors(known_probe)]
    for operation in profile.costs:
        medians = [process.costs[operation].median_seconds for process in profile.processes]
        if max(medians) > ORDER_OF_MAGNITUDE * min(medians):
            found.append(
                f"{operation}: {max(medians) / min(medians):.1f} times as long in one process as "
                f"in another ({min(medians):.3g} to {max(medians):.3g} s)"
            )
    return (*found, *_of_joules(profile), *_of_heat(profile))


def _of_joules(profile: Profile) -> Iterator[str]:
    watts = profile.watts
    if watts and (missing := [name for name in profile.costs if name not in watts]):
        yield f"no joules of {', '.join(missing)} were read: what runs them has no RSE"
    error = watts_error(profile)
    if error is not None and abs(error) > MAX_WATTS_ERROR:
        yield (
            f"the watts of its operations are {error:+.1%} off what the loop of them drew: RSE is "
            "known to that only"
        )
    elif watts and error is None:
        yield "its joules were not held against those of a loop: give the calibration more time"


def _of_heat(profile: Profile) -> Iterator[str]:
    began: dict[str, list[tuple[int, float]]] = {}
    for number, process in enumerate(profile.processes, start=1):
        for heat in process.heat:
            if heat.before.celsius is not None:
                began.setdefault(heat.name, []).append((number, heat.before.celsius))
    for name, found in began.items():
        coolest = min(celsius for _, celsius in found)
        for number, celsius in found:
            if celsius > coolest + COOL_MARGIN_CELSIUS:
                yield (
                    f"process {number}: it began with {name} at {celsius:g} °C, and another one at "
                    f"{coolest:g}: give the calibration more time"
                )


def by_kind(warnings: Iterable[str]) -> list[str]:
    """Return warnings such as "process 2: it was slow", those that differ in numbers joined."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for warning in warnings:
        about, colon, text = warning.partition(": ")
        if not colon or (" " in about and not re.fullmatch(r"process \d+", about)):
            about, text = "", warning
        kinds.setdefault(re.sub(r"[-+]?\d[\d.e-]*%?", "#", text), []).append((about, text))
    joined = []
    for found in kinds.values():
        abouts = [about for about, _ in found if about]
        text = found[0][1]
        if len(found) > 1:
            # The same in other words for each: the one with the largest first number is shown.
            text = f"at worst, {max((text for _, text in found), key=_first_number)}"
        if abouts and all(about.startswith("process ") for about in abouts):
            numbers = ", ".join(about.removeprefix("process ") for about in abouts)
            abouts = [f"process{'es' if len(abouts) > 1 else ''} {numbers}"]
        joined.append(f"{', '.join(abouts)}: {text}" if abouts else text)
    return joined


def _first_number(text: str) -> float:
    number = re.search(r"\d+(\.\d+)?", text)
    return float(number[0]) if number else 0.0
