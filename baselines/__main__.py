"""Run the command line: `python -m baselines compare`, `ablate`, `score`, `report`, `publish`."""

import sys

_TRAINS = sys.argv[1:2] in (["compare"], ["ablate"]) and "--help" not in sys.argv
if __name__ == "__main__" and _TRAINS and sys.stdout is not None and sys.stdout.isatty():
    # Before the imports, which take seconds.
    print("Reading the plan; then come a calibration and the trainings. How long is said first.")

from baselines.cli.app import app  # noqa: E402
from timing.cli import commandline  # noqa: E402

if __name__ == "__main__":
    commandline.run(app)
