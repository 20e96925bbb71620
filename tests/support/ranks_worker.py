"""A training that several ranks carry out together: `torchrun ranks_worker.py FOLDER [STEP]`.

With a step, the processes are killed after it, as by a machine that goes down.
"""

import dataclasses
import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import torch
from torch import nn

from baselines.methods.method import Method
from baselines.methods.names import find
from baselines.methods.recipes import Recipe, RecipePart
from baselines.training import distributed
from baselines.training.checkpoint import Checkpoints
from baselines.training.loop import train
from tests.support.trainings import COSTS, WORKLOAD
from timing import Budget

FOLLOWING = [find(name) for name in ("constant", "ema", "swa", "lawa(k=3,every=2)")]
RATE = 0.02
# Without BatchNorm, whose statistics are of each rank's own batch.
WITHOUT_BATCHNORM = dataclasses.replace(
    WORKLOAD,
    make_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
    bn_batches=(),
)


class Uneven(Recipe):
    """Scores a batch on one rank alone, every third step, as a recipe that selects may."""

    def step(self, batches, spent):
        step = super().step(batches, spent)
        self.steps = getattr(self, "steps", 0) + 1
        if distributed.rank() == 1 and self.steps % 3 == 0:
            return step._replace(operations=(*step.operations, "score"))
        return step


@dataclasses.dataclass(frozen=True)
class UnevenPart(RecipePart):
    step_operations = {**RecipePart.step_operations, "score": 1}

    def begin(self, model, workload, learning_rate):
        return Uneven(model, workload.make_optimizer(model, learning_rate), workload)


UNEVEN = Method("uneven", "uneven", recipe=UnevenPart())


def follow(workload, budget_seconds, costs=COSTS, **options):
    return train(workload, FOLLOWING, 3, Budget(budget_seconds), costs, RATE, 4, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    workload = WITHOUT_BATCHNORM
    if len(sys.argv) > 2 and sys.argv[2] != "uneven":
        calls = count()

        def loss(model, batch):
            if next(calls) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return WITHOUT_BATCHNORM.loss(model, batch)

        workload = dataclasses.replace(WITHOUT_BATCHNORM, loss=loss)
    with distributed.process_group():
        if sys.argv[2:] == ["uneven"]:
            costs = {**COSTS, "score": 0.003}
            result = train(workload, [UNEVEN], 3, Budget(1.0), costs, RATE, 4)
        else:
            result = follow(workload, 1.0, checkpoints=Checkpoints(folder, seconds=0.0))
        rank = distributed.rank()
        (folder / f"rank-{rank}.json").write_text(json.dumps(dataclasses.asdict(result)))
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{rank}.txt").write_text("".join(threads))
