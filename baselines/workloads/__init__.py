"""The workloads that come with the comparison, one file each, and how to bring your own."""

from baselines.workloads.base import Batch, Examples, Workload, WorkloadError
from baselines.workloads.loading import NAMES, load

__all__ = ["NAMES", "Batch", "Examples", "Workload", "WorkloadError", "load"]
