"""Accelerate on handwritten digits: `accelerate launch examples/accelerate_loop.py`."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lawa_opt import LAWA


def main(folder="accelerate_digits", epochs=10, done=0):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train = DataLoader(torch.utils.data.Subset(data, range(1200)), batch_size=50)
    test = DataLoader(torch.utils.data.Subset(data, range(1200, len(data))), batch_size=600)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), k=5)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=100)
    model, opt, train, test, schedule = accelerator.prepare(model, opt, train, test, schedule)
    if done:
        accelerator.load_state(folder)
    for epoch in range(done, epochs):
        opt.train()
        for x, y in train:
            opt.zero_grad()
            accelerator.backward(F.cross_entropy(model(x), y))
            opt.step()
            schedule.step()
        # The prepared optimizer hands eval() and train() on: the average is in from here.
        opt.eval()
        with torch.no_grad():
            losses = [accelerator.gather(F.cross_entropy(model(x), y)).mean() for x, y in test]
        accelerator.print(f"epoch {epoch + 1:2}  average: loss {torch.stack(losses).mean():.4f}")
    # What is saved as the model is the average; the live weights are in the optimizer's state.
    accelerator.save_state(folder)
    return model, opt


if __name__ == "__main__":
    main()
