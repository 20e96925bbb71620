"""A workload of your own: `python -m baselines compare --workload examples/own_workload.py`.

A file with a function `load` that returns a `Workload` is all there is to it. This one is a small
regression on scikit-learn's diabetes data (442 patients, 10 measurements each).
"""

import hashlib
import itertools

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F

from baselines import Workload

BATCH = 32


def load():
    table, progression = load_diabetes(return_X_y=True, scaled=False)
    x, y = torch.tensor(table).float(), torch.tensor(progression).float()
    part = torch.arange(len(x)) % 10
    train, validation, test = x[part < 8], part == 8, part == 9
    mean, spread = train.mean(0), train.std(0)
    x, y = (x - mean) / spread, (y - y[part < 8].mean()) / y[part < 8].std()

    def batches(seed, start=0):
        # The batch of an index depends on the seed and the index alone, so that a run that was cut
        # off can go on from any of them.
        for index in itertools.count(start):
            generator = torch.Generator().manual_seed(1_000_000 * seed + index)
            chosen = torch.randint(len(train), (BATCH,), generator=generator)
            yield x[part < 8][chosen], y[part < 8][chosen]

    def loss(model, batch):
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1])

    def evaluate(model, rows):
        model.eval()
        with torch.no_grad():
            value = loss(model, (x[rows], y[rows])).item()
        model.train()
        return value

    return Workload(
        name="diabetes",
        metric="squared error",
        make_model=lambda: nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 1)),
        make_optimizer=lambda model, rate: torch.optim.AdamW(model.parameters(), lr=rate),
        learning_rate=3e-3,
        batches=batches,
        loss=loss,
        evaluate=lambda model: evaluate(model, validation),
        evaluate_test=lambda model: evaluate(model, test),
        budget_seconds=1.0,
        signature={"model": "mlp-64", "batch": BATCH, "dtype": "float32", "optimizer": "AdamW"},
        data={
            "source": "sklearn.datasets.load_diabetes",
            "sha256": hashlib.sha256(table.tobytes() + progression.tobytes()).hexdigest(),
        },
    )
