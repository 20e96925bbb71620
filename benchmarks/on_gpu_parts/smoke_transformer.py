"""The workload of `transformer.py` in a size that a CPU trains in a second."""

from baselines.workloads import text
from on_gpu_parts.transformer import workload
from timing.calibration import energy_meter


def load():
    """The workload of a run that is only tried; its joules are of the small NVML library."""
    energy_meter.uuids_in_use = lambda: ("aaaa",)
    # For the second that there is.
    energy_meter.GPU_PERIOD_SECONDS = 1e-4
    size = text.Size(layers=1, width=16, heads=2, context=16)
    return workload("transformer-smoke", size, batch=4, most_bytes=100_000)
