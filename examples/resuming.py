"""A training that was cut off goes on bit for bit: `python examples/resuming.py`.

The window is in `opt.state_dict()`, so what one saves with any optimizer is enough: model,
optimizer, schedule and step. A checkpoint of the plain optimizer loads too, into an empty window:
LAWA can be adopted in the midst of a training.
"""

import os
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lawa_opt import LAWA


def save(file, parts, step):
    """Whole or not at all: until the last line, the checkpoint before is the one that is there."""
    states = {name: part.state_dict() for name, part in parts.items()}
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        torch.save({**states, "step": step}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def load(file, parts):
    saved = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def train(file, steps=400, every=50, averaging=True, cut=None):
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    base = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    opt = LAWA(base, k=5, buffers=model) if averaging else base
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=200)
    parts = {"model": model, "opt": opt, "schedule": schedule}
    done = 0
    if file.exists():
        done = load(file, parts)
        snapshots = opt.num_snapshots if isinstance(opt, LAWA) else 0
        print(f"  goes on from step {done}, with {snapshots} snapshots in the window")
    for step in range(done + 1, steps + 1):
        # The batch of a step depends on the step alone, and so needs no saving.
        batch = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
        schedule.step()
        if step == cut:
            raise InterruptedError(f"cut off after step {step}")
        if step % every == 0:
            save(file, parts, step)
    return model, opt


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def main(folder, steps=400, cut=333):
    whole, whole_opt = train(folder / "whole.pt", steps)
    try:
        train(folder / "cut.pt", steps, cut=cut)
    except InterruptedError as error:
        print(error)
    saved = torch.load(folder / "cut.pt", weights_only=True)
    print("  saved beside the first parameter:", *saved["opt"]["state"][0])
    resumed, opt = train(folder / "cut.pt", steps)
    average = whole_opt.averaged_state_dict(whole)
    average_again = opt.averaged_state_dict(resumed)
    print("  live weights as without the cut:", same(whole.state_dict(), resumed.state_dict()))
    print("  average as without the cut:", same(average, average_again))

    print(f"the plain optimizer, {steps // 2} steps, and then LAWA around it")
    train(folder / "plain.pt", steps // 2, averaging=False)
    adopted, _ = train(folder / "plain.pt", steps)
    print("  live weights as with LAWA throughout:", same(whole.state_dict(), adopted.state_dict()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
