"""Which window would have been best? A training leaves checkpoints, and a study tells.

python examples/study.py
python -m lawa_opt study digits-run --evaluate examples/study.py:evaluate --model examples/study.py:make --every 1,2

The first trains, at a constant rate, saves at uneven steps and studies from Python; the second does
the same from the command line, and goes on where it was cut off. Both write study.csv, study.json
and study.png. Needs the extras study and frameworks (scikit-learn has the digits).
"""  # noqa: E501

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from lawa_opt import study

TRAINED = 1000


def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def make():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@torch.no_grad()
def evaluate(model):
    """Two halves: windows are chosen by the first, and the second is reported."""
    x, y = digits()
    x, y = x[TRAINED:], y[TRAINED:]
    losses = cross_entropy(model(x), y, reduction="none")
    errors = (model(x).argmax(1) != y).float()
    return {
        "loss": (losses[::2].mean(), losses[1::2].mean()),
        "error": (errors[::2].mean(), errors[1::2].mean()),
    }


def train(folder, steps):
    torch.manual_seed(0)
    x, y = digits()
    model = make()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    folder.mkdir(exist_ok=True)
    due = steps // 20
    for step in range(1, steps + 1):
        batch = torch.randint(0, TRAINED, (8,))
        opt.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
        if step == due:
            torch.save(model.state_dict(), folder / f"step-{step}.pt")
            # As of saves by the clock: the gaps are not equal.
            due += steps // 40 + int(torch.randint(0, steps // 20, ()))


def main(folder="digits-run", steps=600):
    train(Path(folder), steps)
    found = study([folder], evaluate, model=make, every=[1, 2], out=Path(folder) / "study")
    print(found)
    return found


if __name__ == "__main__":
    main()
