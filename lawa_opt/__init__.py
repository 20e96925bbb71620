"""Average the latest weights of any PyTorch optimizer (LAWA, arXiv 2209.14981)."""

from lawa_opt.averaging_files.average import average_checkpoints
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.optimizer import LAWA

__all__ = ["LAWA", "CheckpointError", "average_checkpoints"]
