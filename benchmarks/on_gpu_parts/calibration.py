"""What the operations of a comparison cost on this GPU: a transformer of 29 million parameters.

Each process is a fresh one. A profile that is to be trusted needs five of them; two must do here.
One that was disturbed, or whose costs do not add up, is run again, three times in all, and then
kept. The additivity error is what the single costs add up to over the time of a real loop, less
one. Joules are watts, read while an operation runs again and again, times its seconds.
"""

import torch
from rows import Row

from on_gpu_parts.part import Part
from on_gpu_parts.reference import target
from timing import CalibrationError, calibrate_in_processes, profile_warnings
from timing.calibration.uncertainty import watts_error

# With those that take the place of disturbed ones, five: all must fit into the part's limit, since
# the profile is there only when the last has ended.
PROCESSES = 2
# For all processes together, their starts included: a quarter of it each measures seconds. In half
# of it the joules of seven operations can be read, five seconds each.
SECONDS, SMOKE_SECONDS = 75.0, 0.8
# What is left of the part's time when a process that hangs is ended.
SECONDS_TO_END = 5.0


def add_joules(part, profile, size):
    """Add what an operation costs in joules, and how far watts add up to those of the loop."""
    for name, joules in profile.joules.items():
        part.add(Row(f"energy of one {name}", size, 1, joules, None, "J"))
        part.add(Row(f"power of {name}", size, 1, profile.watts[name], None, "W"))
    if not profile.joules:
        part.note("No joules of operations were read, so there is no RSE.")
    elif (error := watts_error(profile)) is not None:
        part.add(Row("watts of operations against the loop", size, 1, 100 * error, None, "%"))


def main():
    part = Part(__doc__)
    torch.set_num_threads(1)
    function, arguments = target(part)
    # CUDA is not started here, or each of the processes would find another one on the GPU.
    try:
        profile = calibrate_in_processes(
            function,
            arguments,
            processes=PROCESSES,
            seconds=SMOKE_SECONDS if part.smoke else SECONDS,
            force=True,
            limit_seconds=part.seconds_left - SECONDS_TO_END,
            on_progress=lambda _, said: part.note(said),
            say=part.note,
        )
    except CalibrationError as error:
        raise SystemExit(f"{error.stderr}\n{error}") from error
    part.add(profile=profile.model_dump(mode="json"))
    size = f"{profile.workload['model']}, {len(profile.processes)} processes"
    for name, cost in profile.costs.items():
        milliseconds = 1e3 * cost.median_seconds, 1e3 * cost.spread_seconds
        part.add(Row(f"one {name}", size, cost.samples, *milliseconds, "ms"))
    add_joules(part, profile, size)
    error = 100 * profile.additivity_error
    part.add(
        Row("additivity error, the median of the processes", size, PROCESSES, error, None, "%")
    )
    for warning in profile_warnings(profile):
        part.note(f"The profile says of itself: {warning}")


if __name__ == "__main__":
    main()
