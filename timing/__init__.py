"""Reference system time (RST): computation counted in seconds of one declared reference machine.

No Train No Gain (Kaddour et al., arXiv 2307.06440) compares training methods under equal budgets of
RST, so that runs on any machines, however loaded, can be compared.
"""

from timing.account import Account
from timing.budget import Budget, parse_seconds
from timing.calibration import Calibratable, Operation, calibrate
from timing.flops import Flops, count_flops
from timing.gpu import GpuMeter, GpuUse
from timing.machine import Machine, this_machine
from timing.noise import Noise, NoiseWatch
from timing.policy import POLICIES, Policy
from timing.processes import CalibrationError, calibrate_in_processes
from timing.profile import Calibration, Cost, Profile, ProfileError
from timing.scaled import ScaledEstimate, scaled_seconds
from timing.series import check_series
from timing.software import Software, this_software
from timing.steps import Phase, StepTimer
from timing.stopwatch import Stopwatch
from timing.uncertainty import Interval, ratio_interval, rst_interval

__all__ = [
    "POLICIES",
    "Account",
    "Budget",
    "Calibratable",
    "Calibration",
    "CalibrationError",
    "Cost",
    "Flops",
    "GpuMeter",
    "GpuUse",
    "Interval",
    "Machine",
    "Noise",
    "NoiseWatch",
    "Operation",
    "Phase",
    "Policy",
    "Profile",
    "ProfileError",
    "ScaledEstimate",
    "Software",
    "StepTimer",
    "Stopwatch",
    "calibrate",
    "calibrate_in_processes",
    "check_series",
    "count_flops",
    "parse_seconds",
    "ratio_interval",
    "rst_interval",
    "scaled_seconds",
    "this_machine",
    "this_software",
]
