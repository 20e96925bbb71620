"""ResNet-20 on CIFAR-10, or any small images, in class folders `train/` and `test/`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.base import (
    Batch,
    Examples,
    Workload,
    WorkloadError,
    default_device,
    evaluating,
    generator,
)
from baselines.workloads.data import images

BATCH, EVALUATION_BATCH, STATISTICS_BATCHES = 128, 500, 16
BLOCKS = 3
PADDING = 4
# The last of every ten training images of a class is for validation.
HELD_OUT_EVERY = 10


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a shortcut past them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, height, width) to (batch, channels, height / stride, …)."""
        return F.relu(self.shortcut(x) + self.residual(x))


def resnet(classes: int, blocks: int, width: int = 16) -> nn.Module:
    """Make a ResNet (He et al., arXiv 1512.03385, section 4.2) of 3 stages of `blocks`."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels_in = width
    for stage, block in itertools.product(range(3), range(blocks)):
        channels = width * 2**stage
        layers.append(Block(channels_in, channels, 2 if stage and not block else 1))
        channels_in = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def _augmented(batch: Tensor, draws: torch.Generator) -> Tensor:
    """Move each image by up to 4 pixels each way, and mirror half of them; black comes in."""
    count, _, height, width = batch.shape
    padded = F.pad(batch, (PADDING,) * 4)
    down, right = torch.randint(2 * PADDING + 1, (2, count, 1), generator=draws)
    rows = torch.arange(height) + down
    columns = torch.arange(width) + right
    mirrored = torch.rand(count, 1, generator=draws) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def workload(data: Path, batch: int = BATCH, blocks: int = BLOCKS) -> Workload:
    """Return the workload of `data/train/<class>/*.png` and `data/test/<class>/*.png`.

    Args:
        data: the folder of the two.
        batch: images.
        blocks: in each of the three stages.

    Raises:
        WorkloadError: folders or images are missing, cannot be read, or do not go together.
    """
    train_folder, test_folder = images.read_parts(data, "train", "test")
    train, held_out = train_folder.split(HELD_OUT_EVERY)
    if len(train) < batch or not len(held_out):
        raise WorkloadError(
            f"{data}/train has {len(train_folder.paths)} images; {batch} for training, besides one "
            f"in {HELD_OUT_EVERY} of each class for validation, are needed"
        )
    pixels = images.read_all([*train_folder.paths, *test_folder.paths])
    labels = torch.cat([train_folder.labels, test_folder.labels])
    test = torch.arange(len(train_folder.paths), len(pixels))
    seen = pixels[train].double() / 255
    mean, std = seen.mean((0, 2, 3), keepdim=True), seen.std((0, 2, 3), keepdim=True) + 1e-3
    per_epoch = len(train) // batch

    def normal(images: Tensor) -> Tensor:
        return (images / 255 - mean.float()) / std.float()

    def batches(seed: int, start: int = 0) -> Iterator[Batch]:
        epoch = -1
        for index in itertools.count(start):
            if index // per_epoch != epoch:
                epoch = index // per_epoch
                order = torch.randperm(len(train), generator=generator(seed, epoch))
            first = index % per_epoch * batch
            chosen = order[first : first + batch]
            draws = generator(seed, epoch, first)
            images, targets, _ = example(chosen)
            yield _augmented(images, draws), targets, chosen

    def example(ids: Tensor) -> Batch:
        return normal(pixels[train[ids]]), labels[train[ids]], ids

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0].to(next(model.parameters()).device))  # type: ignore[no-any-return]

    def losses(model: nn.Module, batch: Batch, reduction: str = "none") -> Tensor:
        found = logits(model, batch)
        return F.cross_entropy(found, batch[1].to(found.device), reduction=reduction)

    def error_rate(model: nn.Module, part: Tensor) -> float:
        with evaluating(model) as device:
            wrong = sum(
                int((model(normal(pixels[some]).to(device)).argmax(1).cpu() != labels[some]).sum())
                for some in part.split(EVALUATION_BATCH)
            )
        return wrong / len(part)

    return Workload(
        name="cifar10",
        metric="error rate",
        make_model=lambda: resnet(len(train_folder.classes), blocks).to(default_device()),
        make_optimizer=lambda model, rate: torch.optim.SGD(
            model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        learning_rate=0.1,
        batches=batches,
        loss=lambda model, batch: losses(model, batch, "mean"),
        losses=losses,
        logits=logits,
        examples=Examples(len(train), example),
        evaluate=lambda model: error_rate(model, held_out),
        evaluate_test=lambda model: error_rate(model, test),
        budget_seconds=1800.0,
        signature={
            "model": f"resnet-{6 * blocks + 2}",
            "classes": len(train_folder.classes),
            "batch": batch,
            "pixels": "x".join(map(str, pixels.shape[2:])),
            "evaluation_images": len(held_out),
            "bn_batches": min(STATISTICS_BATCHES, per_epoch),
            "dtype": "float32",
            "device": default_device().type,
            "optimizer": "SGD",
        },
        data={
            "source": data.name,
            "images": len(pixels),
            "sha256": hashlib.sha256(
                pixels.numpy().tobytes() + labels.numpy().tobytes()
            ).hexdigest(),
        },
        bn_batches=[
            inputs.to(default_device())
            for inputs, *_ in itertools.islice(batches(0), min(STATISTICS_BATCHES, per_epoch))
        ],
    )


def load(data: Path) -> Workload:
    """Return the workload of ResNet-20; raises WorkloadError as `workload` does."""
    return workload(data)
