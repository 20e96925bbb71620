"""Image classification: scikit-learn's handwritten digits, a small network with BatchNorm."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.base import Batch, Examples, Workload, evaluating

BATCH, CHANNELS, STATISTICS_BATCHES = 64, 16, 8


def make_model() -> nn.Module:
    """Make two convolutions with BatchNorm: (batch, 1, 8, 8) to logits (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * CHANNELS),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * CHANNELS * 16, 10),
    )


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each image by up to a pixel each way: 1,437 alone are soon known by heart.

    Args:
        images: (n, 1, 8, 8).
        down: (n, 1, 1), 0 to 2, where 1 leaves an image where it is.
        right: the same.
    """
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.arange(8)[None, :, None] + down
    columns = torch.arange(8)[None, None, :] + right
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns].unsqueeze(1)


def load() -> Workload:
    """Return a workload of 1,797 images of 8 by 8 pixels, a tenth each for validation and test."""
    raw = load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target).long()
    part = torch.arange(len(images)) % 10
    train, held_out, test = part < 8, part == 8, part == 9
    train_images, train_labels = images[train], labels[train]
    per_epoch = len(train_images) // BATCH

    def batches(seed: int, start: int = 0) -> Iterator[Batch]:
        # Numbers are drawn for the batches left out too, in microseconds, so that the stream is
        # one; the images are not made.
        generator = torch.Generator().manual_seed(seed)
        for index in itertools.count():
            if index % per_epoch == 0:
                order = torch.randperm(len(train_images), generator=generator)
            down, right = torch.randint(3, (2, BATCH, 1, 1), generator=generator)
            if index >= start:
                first = index % per_epoch * BATCH
                chosen = order[first : first + BATCH]
                yield _shifted(train_images[chosen], down, right), train_labels[chosen], chosen

    def evaluate(model: nn.Module, part: Tensor) -> float:
        with evaluating(model):
            return float(F.cross_entropy(model(images[part]), labels[part]))

    generator = torch.Generator().manual_seed(0)
    return Workload(
        name="digits",
        metric="nats per image",
        make_model=make_model,
        make_optimizer=lambda model, rate: torch.optim.SGD(
            model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4
        ),
        learning_rate=0.1,
        batches=batches,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        losses=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        logits=lambda model, batch: model(batch[0]),
        examples=Examples(
            len(train_images), lambda ids: (train_images[ids], train_labels[ids], ids)
        ),
        evaluate=lambda model: evaluate(model, held_out),
        evaluate_test=lambda model: evaluate(model, test),
        bn_batches=[
            _shifted(images, *torch.randint(3, (2, BATCH, 1, 1), generator=generator))
            for images in train_images[: STATISTICS_BATCHES * BATCH].split(BATCH)
        ],
        budget_seconds=5.0,
        signature={
            "model": f"cnn-{CHANNELS}",
            "batch": BATCH,
            "evaluation_images": int(held_out.sum()),
            "bn_batches": STATISTICS_BATCHES,
            "dtype": "float32",
            "optimizer": "SGD",
        },
        data={
            "source": "sklearn.datasets.load_digits",
            "images": len(images),
            "sha256": hashlib.sha256(raw.images.tobytes() + raw.target.tobytes()).hexdigest(),
        },
    )
