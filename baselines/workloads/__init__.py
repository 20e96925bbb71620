"""The workloads that come with the comparison, one file each."""
