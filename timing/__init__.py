"""Reference system time (RST): computation counted in seconds of one declared reference machine.

No Train No Gain (Kaddour et al., arXiv 2307.06440) compares training methods under equal budgets of
RST, so that runs on any machines, however loaded, can be compared. What is here, by question:

What does an operation cost on the reference machine?
    CalibrationTarget, Operation    what is to be measured
    calibrate_in_processes          measures it, in fresh processes, and returns a Profile
    Profile, Calibration, Cost      what was measured: Profile.read("reference.json")
    rst_interval, rse_interval      how well seconds and joules of operations are known
    profile_warnings                what is wrong with it
    count_flops, Flops              a whole number that signs a workload

What has a training spent?
    Account, Policy, POLICIES       counts operations, and charges seconds and joules by a policy
    Budget, parse_seconds           what may be spent; timing.rst.schedules has rates that follow it

What did it take here?
    StepTimer, Phase                seconds of each phase, on CPU or GPU, without waiting in a step
    Stopwatch                       wall and CPU seconds, and the load of other processes
    GpuMeter, GpuUse                active time, energy, clocks and throttling of each GPU, by NVML
    this_machine, this_software     what "here" is

What would it be on the reference machine?
    MeasuredRun, map_run, MappedRun operations counted elsewhere, in reference seconds

The same as commands: `python -m timing --help`.
"""

from timing.calibration.environment import this_machine, this_software
from timing.calibration.flops import Flops, count_flops
from timing.calibration.measure import calibrate
from timing.calibration.processes import CalibrationError, calibrate_in_processes
from timing.calibration.profile import Profile, ProfileError
from timing.calibration.row import Calibration, Cost
from timing.calibration.target import CalibrationTarget, Operation
from timing.calibration.uncertainty import rse_interval, rst_interval
from timing.calibration.warnings import profile_warnings
from timing.clocks.phase import Phase
from timing.clocks.step_timer import StepTimer
from timing.clocks.stopwatch import Stopwatch
from timing.gpu.meter import GpuMeter
from timing.gpu.span import GpuUse
from timing.mapping.map_run import MappedRun, map_run
from timing.mapping.measured_run import MeasuredRun, RunError
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
    "MappedRun",
    "MeasuredRun",
    "Operation",
    "Phase",
    "Policy",
    "Profile",
    "ProfileError",
    "RunError",
    "StepTimer",
    "Stopwatch",
    "calibrate",
    "calibrate_in_processes",
    "count_flops",
    "map_run",
    "parse_seconds",
    "profile_warnings",
    "rse_interval",
    "rst_interval",
    "this_machine",
    "this_software",
]
