"""The parts of `on_gpu.py`, a file each: `python -m on_gpu_parts.NAME --json FILE`."""
