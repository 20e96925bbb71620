"""Read an average off a training: one file an averager."""

from baselines.methods.averagers.base import Averager, AveragerPart, Live, check_keys

__all__ = ["Averager", "AveragerPart", "Live", "check_keys"]
