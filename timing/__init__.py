"""Reference system time (RST): computation counted in seconds of one declared reference machine.

No Train No Gain (Kaddour et al., arXiv 2307.06440) compares training methods under equal budgets of
RST, so that runs on any machines, however loaded, can be compared.
"""

from timing.calibration.environment import this_machine, this_software
from timing.calibration.flops import Flops, count_flops
from timing.calibration.measure import calibrate
from timing.calibration.processes import CalibrationError, calibrate_in_processes
from timing.calibration.profile import Profile, ProfileError
from timing.calibration.row import Calibration, Cost
from timing.calibration.target import CalibrationTarget, Operation
from timing.calibration.uncertainty import rst_interval
from timing.calibration.warnings import profile_warnings
from timing.clocks.phase import Phase
from timing.clocks.step_timer import StepTimer
from timing.clocks.stopwatch import Stopwatch
from timing.gpu.meter import GpuMeter
from timing.gpu.span import GpuUse
from timing.rst.account import Account
from timing.rst.budget import Budget, parse_seconds
from timing.rst.policy import POLICIES, Policy
from timing.statistics import Interval

__all__ = [
    "POLICIES",
    "Account",
    "Budget",
    "Calibration",
    "CalibrationError",
    "CalibrationTarget",
    "Cost",
    "Flops",
    "GpuMeter",
    "GpuUse",
    "Interval",
    "Operation",
    "Phase",
    "Policy",
    "Profile",
    "ProfileError",
    "StepTimer",
    "Stopwatch",
    "calibrate",
    "calibrate_in_processes",
    "count_flops",
    "parse_seconds",
    "profile_warnings",
    "rst_interval",
    "this_machine",
    "this_software",
]
