"""Send what a comparison left to MLflow: `python -m baselines.tracking FOLDER`."""

import sys

from baselines.tracking.sender import command

if __name__ == "__main__":
    sys.exit(command())
