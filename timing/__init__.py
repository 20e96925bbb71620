"""Reference system time (RST): computation counted in seconds of one declared reference machine.

No Train No Gain (Kaddour et al., arXiv 2307.06440) compares training methods under equal budgets of
RST, so that runs on any machines, however loaded, can be compared.
"""

from timing.account import Account, Budget, parse_seconds
from timing.calibrate import Calibration, Operation, calibrate
from timing.machine import Machine, this_machine
from timing.profile import Cost, Profile, ProfileError
from timing.stopwatch import Stopwatch

__all__ = [
    "Account",
    "Budget",
    "Calibration",
    "Cost",
    "Machine",
    "Operation",
    "Profile",
    "ProfileError",
    "Stopwatch",
    "calibrate",
    "parse_seconds",
    "this_machine",
]
