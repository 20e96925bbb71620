"""A process that keeps a device busy until its standard input ends: `neighbour.py cpu|cuda`."""

import subprocess
import sys
from contextlib import contextmanager

import torch

from timing.calibration.worker import exit_when_parent_dies

# In a row, before it waits for the device: some 10 ms.
PRODUCTS = 50


@contextmanager
def neighbour(device):
    """A process that keeps a device busy until the end of the block."""
    command = [sys.executable, "-m", "on_gpu_parts.neighbour", device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if not process.stdout.readline():
                raise RuntimeError("the process that is to share the card ended at once")
            yield process
        finally:
            process.kill()


def main():
    exit_when_parent_dies()
    torch.set_num_threads(1)
    device = sys.argv[1]
    side, dtype = (4096, torch.bfloat16) if device == "cuda" else (128, torch.float32)
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    print("ready", flush=True)
    while True:
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
