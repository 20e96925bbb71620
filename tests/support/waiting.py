"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], object],
    told: Callable[[], object] = lambda: "it did not happen",
    seconds: float = 60.0,
) -> None:
    """Wait until the condition holds; after so long, fail with what is told then."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)
