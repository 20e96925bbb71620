"""Read an average off a training: one file an averager."""

from baselines.methods.averagers.base import Averager, NoAveraging, check_keys

__all__ = ["Averager", "NoAveraging", "check_keys"]
