"""Look before the run whether all is there that it needs, and print what it runs on."""

import importlib
import sys
import traceback

# What must be there is what these import; what is not is named, before any time is spent.
NEEDED = (
    "torch",
    "timing",
    "baselines.cli.console",
    "baselines.workloads",
    "pytest",
    "hypothesis",
)


def main():
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            traceback.print_exc()
            missing.append(f"{name} cannot be imported: {error}")
    if missing:
        print("\n".join(missing))
        sys.exit("bring the wheels that CONTRIBUTING names, and give their folder with --wheels")
    import torch

    from timing import this_machine, this_software

    print(this_machine())
    print(this_software())
    if "--smoke" not in sys.argv and not torch.cuda.is_available():
        sys.exit("CUDA sees no GPU here: this is for a machine with one; --smoke tries it on a CPU")


if __name__ == "__main__":
    main()
