"""Average checkpoints that are there already: `python examples/averaging_files.py`.

The last of these averages as a file, without a line of Python. The folder's files are taken in the
order of their steps, where a shell lists step-100 before step-20; `python -m lawa_opt verify
average.safetensors` makes it again from them, and compares every bit:

python -m lawa_opt average digits-steps --out average.safetensors --last 5 --weights 1-sqrt
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lawa_opt import average_checkpoints


def train(model, x, y, folder, steps, every):
    """A constant rate and no LAWA: whoever trained this has left its files, and nothing more."""
    opt = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    paths = []
    for step in range(1, steps + 1):
        batch = torch.randint(len(x), (32,))
        opt.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
        if step % every == 0:
            paths.append(folder / f"step-{step}.safetensors")
            save_file(model.state_dict(), paths[-1])
    return paths


def error_rate(model, weights, x, y):
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) != y).double().mean().item()


def main(folder="digits-steps", steps=400, every=20):
    torch.manual_seed(0)
    Path(folder).mkdir(exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    paths = train(model, x[:1200], y[:1200], Path(folder), steps, every)
    weights = {
        "last checkpoint": average_checkpoints(paths, last=1),
        "uniform mean of the last 5": average_checkpoints(paths, last=5),
        # What a rate that decays over these checkpoints would have come to, by its weights.
        "1-sqrt decay over the last 5": average_checkpoints(paths, last=5, weights="1-sqrt"),
    }
    errors = {name: error_rate(model, each, x[1200:], y[1200:]) for name, each in weights.items()}
    for name, error in errors.items():
        print(f"error of the {name:28}  {error:6.2%}")
    return paths, model, errors


if __name__ == "__main__":
    main()
