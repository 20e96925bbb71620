"""The workload of the run, and its reference profile, which one part measures for the others."""

import math
from pathlib import Path

import baselines.experiment.calibration
from timing import Profile, calibrate, this_machine, this_software

HERE = Path(__file__).parent
# Where the profile of several processes is missing.
SECONDS_ALONE = 2.0


def target(part):
    """What is to be calibrated: the function and its arguments."""
    name = "smoke_transformer" if part.smoke else "transformer"
    return "baselines.experiment.calibration:calibration_target", {
        "workload": str(HERE / f"{name}.py")
    }


def profile_of(part):
    """The profile that the calibration left; where there is none, one of this process alone."""
    for other in ("calibration", "training"):
        if found := part.data_of(other, "profile"):
            return Profile.model_validate(found)
    part.note("The calibration left no profile: calibrated anew, in this process alone.")
    calibration_target = baselines.experiment.calibration.calibration_target(**target(part)[1])
    operations = calibration_target.operations
    profile = Profile(
        machine=this_machine(),
        software=this_software(),
        workload=dict(calibration_target.workload),
        every={name: operation.every for name, operation in operations.items()},
        processes=(calibrate(operations, 0.1 if part.smoke else SECONDS_ALONE, math.inf),),
    )
    part.add(profile=profile.model_dump(mode="json"))
    return profile
