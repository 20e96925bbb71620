"""Average the latest weights of any PyTorch optimizer (LAWA, arXiv 2209.14981)."""

from lawa_opt.averaging_files.average import average_checkpoints
from lawa_opt.averaging_files.choose import Selection
from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.averaging_files.verify import verify_average
from lawa_opt.fitting import FittedWeights
from lawa_opt.leaving import leave
from lawa_opt.model_window import ModelWindow
from lawa_opt.optimizer import LAWA
from lawa_opt.schedule import CollectSchedule
from lawa_opt.studying.live import WindowStudy
from lawa_opt.studying.result import Study
from lawa_opt.studying.study import study
from lawa_opt.window import Window

__version__ = "0.1.0"
__all__ = [
    "LAWA",
    "CheckpointError",
    "CollectSchedule",
    "FittedWeights",
    "ModelWindow",
    "Selection",
    "Study",
    "Window",
    "WindowStudy",
    "__version__",
    "average_checkpoints",
    "leave",
    "study",
    "verify_average",
]
