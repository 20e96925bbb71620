"""Run the command line: `python -m baselines compare`, `ablate` and `score`."""

from baselines.cli.app import app
from timing.cli import commandline

if __name__ == "__main__":
    commandline.run(app)
