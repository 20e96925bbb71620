"""The command that maps a measured run to the RST of a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timing.calibration.profile import Profile
from timing.calibration.uncertainty import rse_interval
from timing.calibration.warnings import by_kind, profile_warnings
from timing.cli import commandline
from timing.mapping.map_run import MappedRun, map_run
from timing.mapping.measured_run import MeasuredRun
from timing.rst.account import reference_joules
from timing.rst.policy import Policy

console = commandline.console()


def map_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A file that MeasuredRun.write has written.")
    ],
    reference: Annotated[Path, typer.Option(help="The profile of the reference machine.")],
    policy: Annotated[Policy, typer.Option(help="Which operations are charged.")] = "algoperf",
) -> None:
    """Print what a training that ran elsewhere is in reference system time.

    Exact where the profile has all its operations, an estimate with an interval where it has some.
    """
    try:
        measured, profile = MeasuredRun.read(run), Profile.read(reference)
        mapped = map_run(measured, profile, policy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _print(run, measured, profile, mapped, policy)


def _print(
    path: Path, measured: MeasuredRun, profile: Profile, mapped: MappedRun, policy: Policy
) -> None:
    table = commandline.table(
        f"{path.name} on {profile.machine}",
        *("operation", "times", "median here", "reference", "reference / here", ""),
    )
    for name, one in mapped.operations.items():
        here, there = one.here_seconds, one.reference_seconds
        said = [
            *(["estimated"] if one.is_estimate else []),
            *([] if one.charged else [f"not charged by {policy}"]),
        ]
        table.add_row(
            name,
            f"{one.count:,}",
            "not measured" if here is None else f"{1e3 * here:.4f} ms",
            "·" if there is None else f"{1e3 * there:.4f} ms",
            "·" if here is None or there is None else f"{there / here:.3f}",
            ", ".join(said),
        )
    console.print(table)
    how = "exact in its operations" if mapped.is_exact else "AN ESTIMATE"
    lines = [f"RST by policy {policy}: {mapped.rst} s (95% interval), {how}"]
    charged = {name: one.count for name, one in mapped.operations.items() if one.charged}
    if reference_joules(charged, profile.joules) is not None:
        energy = rse_interval(charged, profile, policy)
        lines.append(f"RSE by policy {policy}: {energy} J of {profile.joules_of} (95% interval)")
    if measured.machine is not None:
        lines.append(f"it ran on {measured.machine}")
    lines += [f"WARNING: {warning}" for warning in by_kind(profile_warnings(profile))]
    for line in lines:
        console.print(line, soft_wrap=True)
