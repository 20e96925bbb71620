"""A plain training loop on handwritten digits: `python examples/plain_loop.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lawa_opt import LAWA


def error_rate(model, x, y):
    model.eval()
    with torch.no_grad():
        wrong = (model(x).argmax(1) != y).double().mean().item()
    model.train()
    return wrong


def main(epochs=20):
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    x_train, y_train, x_test, y_test = x[:1200], y[:1200], x[1200:], y[1200:]
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    opt = LAWA(
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), k=5, buffers=model.buffers()
    )
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=20)
    errors = []
    for epoch in range(epochs):
        for batch in torch.randperm(len(x_train)).split(32):
            opt.zero_grad()
            F.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
            opt.step()
            schedule.step()
        live = error_rate(model, x_test, y_test)
        with opt.averaged():
            average = error_rate(model, x_test, y_test)
        print(f"epoch {epoch + 1:2}  error: live {live:6.2%}  average {average:6.2%}")
        errors.append((live, average))
    return errors


if __name__ == "__main__":
    main()
