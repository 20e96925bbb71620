"""The workloads that come with the comparison, one file each, and how to bring your own."""

from baselines.workloads.base import Batch, Workload, WorkloadError
from baselines.workloads.loading import NAMES, load

__all__ = ["NAMES", "Batch", "Workload", "WorkloadError", "load"]
