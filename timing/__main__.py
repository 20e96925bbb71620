"""Run the command line: `python -m timing probe`, `calibrate`, `show`, `compare` and `map`."""

from timing.cli import commandline
from timing.cli.app import app

if __name__ == "__main__":
    commandline.run(app)
