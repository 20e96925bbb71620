"""Measure a profile, read and compare profiles, and say what this machine is."""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from timing.calibration.environment import this_machine
from timing.calibration.processes import (
    LIMIT_SECONDS,
    SECONDS,
    CalibrationError,
    calibrate_in_processes,
)
from timing.calibration.profile import Profile, ProfileError
from timing.calibration.uncertainty import operation_ratio
from timing.calibration.warnings import (
    LEAST_PROCESSES,
    ORDER_OF_MAGNITUDE,
    PRECISION,
    by_kind,
    profile_warnings,
)
from timing.cli import commandline
from timing.cli.commandline import CommandError
from timing.cli.mapping import map_command
from timing.cli.showing import console, milliseconds, print_profile, print_warnings, say
from timing.clocks.host_energy import HostEnergy
from timing.gpu.meter import probe_gpus

app = typer.Typer(add_completion=False)

HOST_CLOCKS = {
    "steps": "time.perf_counter, and CUDA events where there is a GPU",
    "processor time": "time.process_time",
    "load of others": "psutil",
}


@app.callback()
def _commands(version: commandline.VersionOption = False) -> None:
    """Reference system time: measure a profile, read it, and see what this machine is."""


@app.command()
def probe() -> None:
    """Print what this machine is, as a profile records it, and what can be measured here."""
    gpus, unavailable = probe_gpus()
    with HostEnergy() as energy:
        pass
    host = {**HOST_CLOCKS, "energy of the processors": energy.unavailable or "available"}
    measured = {"host": host, "gpus": gpus, "unavailable": unavailable}
    console.print_json(
        data={"machine": this_machine().model_dump(mode="json"), "measured": measured}
    )


@app.command()
def calibrate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="MODULE:FUNCTION or FILE.py:FUNCTION, which returns a timing.CalibrationTarget.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file that the profile is written to.")],
    argument: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An argument of the function; may be given more than once."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="The least number of fresh processes that measure.")
    ] = LEAST_PROCESSES,
    seconds: Annotated[
        float,
        typer.Option(
            help="Seconds for all processes together, their starts included; the least number of "
            "them runs in any case."
        ),
    ] = SECONDS,
    precision: Annotated[
        float,
        typer.Option(
            help="Stop once the reference iteration is known to plus or minus this share (95%)."
        ),
    ] = PRECISION,
    threads: Annotated[
        int, typer.Option(help="Threads of torch. With as many as cores, other work disturbs more.")
    ] = 1,
    limit: Annotated[
        float, typer.Option(help="Seconds after which a process counts as hanging, and is ended.")
    ] = LIMIT_SECONDS,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write the profile even if the machine was busy, or with 2 processes."
        ),
    ] = False,
) -> None:
    """Measure a reference profile on this machine, in fresh processes, in a loop like the real one.

    The function sets up model, optimizer and data, and returns a `timing.CalibrationTarget`: the
    workload's signature and its operations.
    """
    pairs = list(map(_key_and_value, argument or []))
    arguments = dict(pairs)
    if len(arguments) < len(pairs):
        raise typer.BadParameter("--argument names a key twice")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise typer.BadParameter(f"--out: {out} cannot be written: no such folder, or no right to")
    try:
        with commandline.progress_bar(console) as progress:
            task = progress.add_task("calibrating", total=1.0)

            def show_progress(done: float, happened: str) -> None:
                progress.update(task, completed=done)
                progress.console.print(happened, soft_wrap=True)

            profile = calibrate_in_processes(
                target,
                arguments,
                processes=processes,
                seconds=seconds,
                precision=precision,
                threads=threads,
                force=force,
                limit_seconds=limit,
                on_progress=show_progress,
                say=lambda line: progress.console.print(line, soft_wrap=True),
            )
    except CalibrationError as error:
        print(error.stderr, end="", file=sys.stderr)
        raise CommandError(error) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        profile.write(out)
    except OSError as error:
        raise CommandError(f"{out}: {error.strerror}") from error
    print_profile(out, profile)


@app.command()
def show(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PROFILE...", help="Files that calibrate has written.")
    ],
) -> None:
    """Print reference profiles, once they have been checked."""
    profiles = [_read(path) for path in paths]
    for path, profile in zip(paths, profiles, strict=True):
        print_profile(path, profile)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The profile that B is compared with.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A profile of the same workload.")],
) -> None:
    """Print what each operation is charged in profile B against profile A, with a 95% interval."""
    first, second = _read(a), _read(b)
    if odd := _differences(first.workload, second.workload):
        raise typer.BadParameter(
            f"{a} and {b} are of different workloads ({odd}): costs of one say nothing of the other"
        )
    shared = [operation for operation in first.costs if operation in second.costs]
    if not shared:
        raise typer.BadParameter(f"{a} and {b} have no operation in common")
    ratios = {operation: operation_ratio(operation, first, second) for operation in shared}
    table = commandline.table(
        f"{b.name} against {a.name}", "operation", "A", "B", "B / A", "95% interval"
    )
    for operation, ratio in ratios.items():
        table.add_row(
            operation,
            milliseconds(first.seconds[operation]),
            milliseconds(second.seconds[operation]),
            f"{ratio.estimate:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
        )
    console.print(table)
    for name, profile in (("A", first), ("B", second)):
        say(f"{name}: {profile.machine}; additivity error {profile.additivity_error:+.1%}")
    if odd := _differences(first.software.model_dump(), second.software.model_dump()):
        say(f"software that differs: {odd}")
    for path, mine, other in ((a, first, second), (b, second, first)):
        if alone := sorted(mine.costs.keys() - other.costs.keys()):
            say(f"in {path} alone: {', '.join(alone)}")
    middle = statistics.median(ratio.estimate for ratio in ratios.values())
    found = [
        f"{name}: {warning}"
        for name, profile in (("A", first), ("B", second))
        for warning in by_kind(profile_warnings(profile))
    ]
    found += [
        f"{operation}: its ratio of {ratio.estimate:.3g} is far from the operations' median of "
        f"{middle:.3g}: one of the two costs is wrong, or something is slow on one machine alone"
        for operation, ratio in ratios.items()
        if max(ratio.estimate / middle, middle / ratio.estimate) > ORDER_OF_MAGNITUDE
    ]
    print_warnings(found, "this comparison")


app.command("map")(map_command)


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise typer.BadParameter(f"--argument must be KEY=VALUE: {text!r:.60}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
    except RecursionError:
        raise typer.BadParameter(f"--argument {key} is nested too deeply") from None


def _read(path: Path) -> Profile:
    try:
        return Profile.read(path)
    except ProfileError as error:
        raise typer.BadParameter(str(error)) from error


def _differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {a.get(key)} and {b.get(key)}" for key in a | b if a.get(key) != b.get(key)
    )
