"""Scripts started over several ranks, as `torchrun` starts them."""

import os
import subprocess
from pathlib import Path

from tests.support import warm_python

ROOT = Path(__file__).parent.parent.parent


def torchrun(
    *command: object, ranks: int = 2, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what became of `torchrun COMMAND` on this machine."""
    # A port of 0 is a free one.
    rendezvous = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    launch = (warm_python.executable(), "-m", "torch.distributed.run", *rendezvous)
    return subprocess.run(
        [*launch, f"--nproc-per-node={ranks}", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
