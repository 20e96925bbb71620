"""A schedule of your own in the comparison: this file, given as a part in --methods.

python -m baselines compare --workload digits --methods decayed,examples/own_schedule.py+lawa
"""

from dataclasses import dataclass

from baselines import Range, SchedulePart


@dataclass(frozen=True)
class PowerPart(SchedulePart):
    name = "power"
    title = "power decay"
    # What `--trials` may try of the setting below.
    space = {"power": Range(0.5, 3.0)}

    power: float = 2.0

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError(f"power must be above 0: {self.power}")

    def factor(self, spent):
        return (1 - spent) ** self.power


part = PowerPart()
