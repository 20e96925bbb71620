"""The workloads that come with the comparison, one file each, and how to bring your own."""

from baselines.workloads.loading import NAMES, load
from baselines.workloads.workload import Batch, Workload, WorkloadError

__all__ = ["NAMES", "Batch", "Workload", "WorkloadError", "load"]
