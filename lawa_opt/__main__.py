"""`python -m lawa_opt`."""

import sys

from lawa_opt.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
