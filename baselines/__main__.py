"""Run the command line: `python -m baselines compare`, `ablate`, `score`, `report`, `publish`."""

import os
import sys
from contextlib import suppress

_TRAINS = sys.argv[1:2] in (["compare"], ["ablate"]) and "--help" not in sys.argv
if __name__ == "__main__" and _TRAINS and os.environ.get("RANK", "0") == "0":
    # Before the imports, which take seconds. Where nobody reads, the command itself finds out.
    with suppress(OSError):
        print(
            "Reading the plan. What it trains and how long that takes follows in some seconds; "
            "unless you ask for more, some five minutes.",
            flush=True,
        )

from baselines.cli.app import app  # noqa: E402
from timing.cli import commandline  # noqa: E402

if __name__ == "__main__":
    commandline.run(app)
