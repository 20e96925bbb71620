"""Print profiles and what is to be known of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from timing.calibration.profile import FLOPS, Profile
from timing.calibration.uncertainty import rse_interval, rst_interval, watts_error
from timing.calibration.warnings import by_kind, profile_warnings
from timing.cli import commandline

console = commandline.console()


def say(line: str) -> None:
    """Print a line, however long."""
    console.print(line, soft_wrap=True)


def milliseconds(seconds: float) -> str:
    """Return seconds in thousandths, with the unit."""
    return f"{seconds * 1e3:.4f} ms"


def print_warnings(warnings: Iterable[str], about: str) -> None:
    """Print warnings, or that there are none."""
    lines = [f"WARNING: {warning}" for warning in warnings] or [f"no warnings about {about}"]
    for line in lines:
        say(line)


def print_profile(path: Path, profile: Profile) -> None:
    """Print all that a profile says; a column of joules where it has any."""
    joules = profile.joules
    table = commandline.table(
        f"{path.name}, measured {profile.created:%Y-%m-%d %H:%M %Z}",
        *("operation", "median", "quartiles apart", "samples", "every", "95% interval"),
        *(["energy"] if joules else []),
    )
    for operation, cost in profile.costs.items():
        # Under this policy nothing is left out.
        interval = rst_interval({operation: 1}, profile, "mlperf")
        table.add_row(
            operation,
            milliseconds(cost.median_seconds),
            milliseconds(cost.spread_seconds),
            str(cost.samples),
            str(profile.every[operation]),
            f"{milliseconds(interval.low)} to {milliseconds(interval.high)}",
            *([_joules(operation, joules)] if joules else []),
        )
    console.print(table)
    errors = ", ".join(f"{process.additivity_error:+.1%}" for process in profile.processes)
    software = profile.software.model_dump()
    loop = rst_interval(profile.reference_iteration, profile, "mlperf")
    for line in (
        f"machine: {profile.machine}",
        "software: " + ", ".join(f"{key}={value}" for key, value in software.items()),
        "workload: " + ", ".join(f"{key}={value}" for key, value in profile.workload.items()),
        f"processes: {len(profile.processes)}, and {profile.discarded} discarded; other processes "
        f"kept up to {profile.other_cores:.2f} cores busy{_elsewhere(profile)}; the processor was "
        f"slowed down from outside in up to {profile.disturbed_share:.0%} of the passes"
        f"{_throttled(profile)}",
        f"additivity error: {profile.additivity_error:+.1%} (by process: {errors})",
        f"reference iteration: {loop} s charged (95% interval over processes)",
        *_of_energy(profile),
        *_of_heat(profile),
    ):
        say(line)
    flops = profile.workload.get(FLOPS)
    if isinstance(flops, int) and "train_step" in profile.seconds:
        rate = flops / profile.seconds["train_step"] / 1e9
        say(f"train_step: {flops:,} FLOPs by PyTorch's counter, {rate:.3g} GFLOP/s")
    print_warnings(by_kind(profile_warnings(profile)), "this profile")


def _joules(operation: str, joules: dict[str, float]) -> str:
    return f"{joules[operation]:.4g} J" if operation in joules else "not read"


def _elsewhere(profile: Profile) -> str:
    if profile.cores_elsewhere == 0:
        return ""
    return f" of those it could run on, and up to {profile.cores_elsewhere:.2f} others were busy"


def _throttled(profile: Profile) -> str:
    shares = [process.noise.throttled_share or 0.0 for process in profile.processes]
    return f", and a GPU was throttled in up to {max(shares):.0%} of them" if any(shares) else ""


def _of_energy(profile: Profile) -> list[str]:
    """Return lines about joules; none where none were read."""
    joules, iteration = profile.joules, profile.reference_iteration
    if not joules:
        return []
    said = f"energy: joules of {profile.joules_of}, whoever used them"
    if joules.keys() >= iteration.keys():
        said += f"; a reference iteration is {rse_interval(iteration, profile, 'mlperf')} J"
    error = watts_error(profile)
    if error is not None:
        said += f"; the watts of its operations are {error:+.1%} off those of the loop"
    return [said]


def _of_heat(profile: Profile) -> list[str]:
    """Return a line for each GPU: temperatures and clocks before and after the processes."""
    found: dict[str, list[str]] = {}
    for heat in (heat for process in profile.processes for heat in process.heat):
        before, after = heat.before, heat.after
        found.setdefault(heat.name, []).append(
            f"{_shown(before.celsius)} to {_shown(after.celsius)} °C at "
            f"{_shown(before.sm_clock_mhz)} to {_shown(after.sm_clock_mhz)} MHz"
        )
    return [f"{name}, by process: {', '.join(each)}" for name, each in found.items()]


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
