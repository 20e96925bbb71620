"""What is dear to make, made once a run of the tests and shared by the processes that run them."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tests.support import warm_python


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled in this run of the tests; it is only to be read."""
    folder = Path(warm_python.folder(), name)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_suffix(".being-made")
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder
