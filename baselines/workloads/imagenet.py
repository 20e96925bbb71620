"""ResNet-50 on ImageNet, in class folders `train/` and `val/`; needs torchvision."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from baselines.workloads.base import (
    Batch,
    Workload,
    WorkloadError,
    default_device,
    evaluating,
    generator,
)
from baselines.workloads.data import images
from baselines.workloads.data.images import ImageFolder

BATCH, STATISTICS_BATCHES = 256, 8
# The last of every fifty training images of a class is for validation: ImageNet's own validation
# images, whose labels are public, are the test part.
HELD_OUT_EVERY = 50
READERS = min(16, os.cpu_count() or 1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# An image of a folder, and what the randomness of its augmentation is drawn from.
_Key = tuple[int, tuple[int, ...]]


class _Images(Dataset[tuple[Tensor, int]]):
    """Images read when asked for; the same key gives the same pixels, whichever process reads."""

    def __init__(self, folder: ImageFolder, transform: Callable[[Any], Tensor]) -> None:
        self.folder = folder
        self.transform = transform

    def __getitem__(self, key: _Key) -> tuple[Tensor, int]:
        image, numbers = key
        picture = images.open_image(self.folder.paths[image])
        # torchvision's transforms draw from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(*numbers).initial_seed())
            return self.transform(picture), int(self.folder.labels[image])


class _Read(Sequence[Tensor]):
    """The inputs of the first training batches, read anew each time: they would fill gigabytes."""

    def __init__(self, batches: Callable[[int, int], Iterator[Batch]], length: int) -> None:
        self.batches = batches
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(f"{index} is none of {self.length} batches")
        return next(self.batches(0, index))[0].to(default_device())

    def __iter__(self) -> Iterator[Tensor]:
        for inputs, _ in itertools.islice(self.batches(0, 0), self.length):
            yield inputs.to(default_device())


def _keys(train: Tensor, batch: int, seed: int, start: int) -> Iterator[list[_Key]]:
    """Yield the images of each batch from `start` on: an order of their own for every epoch."""
    per_epoch = len(train) // batch
    epoch = -1
    for index in itertools.count(start):
        if index // per_epoch != epoch:
            epoch = index // per_epoch
            order = train[torch.randperm(len(train), generator=generator(seed, epoch))].tolist()
        first = index % per_epoch * batch
        yield [(order[i], (seed, epoch, i)) for i in range(first, first + batch)]


def _read(
    folder: ImageFolder, transform: Callable[[Any], Tensor], keys: Any, readers: int
) -> Iterator[Batch]:
    """Yield batches in the order of the keys, read by processes beside this one."""
    loader: DataLoader[Any] = DataLoader(
        _Images(folder, transform),
        batch_sampler=keys,
        num_workers=readers,
        pin_memory=torch.cuda.is_available(),
        # Its own, or it would draw from torch's global one.
        generator=torch.Generator(),
    )
    for inputs, targets in loader:  # noqa: UP028 (a loader gives lists)
        yield inputs, targets


def workload(
    data: Path,
    transforms: tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]],
    make_network: Callable[[int], nn.Module],
    batch: int = BATCH,
    readers: int = READERS,
) -> Workload:
    """Return the workload of `data/train/<class>/*` and `data/val/<class>/*`.

    Args:
        data: the folder of the two.
        transforms: of a Pillow image to a tensor, in training and in evaluation.
        make_network: of a number of classes.
        batch: images.
        readers: processes that read images; 0 reads them in this one.

    Raises:
        WorkloadError: folders or images are missing, or do not go together.
    """
    train_folder, test_folder = images.read_parts(data, "train", "val")
    train, held_out = train_folder.split(HELD_OUT_EVERY)
    if len(train) < batch or not len(held_out):
        raise WorkloadError(
            f"{data}/train has {len(train_folder.paths)} images; {batch} for training, besides one "
            f"in {HELD_OUT_EVERY} of each class for validation, are needed"
        )
    test = torch.arange(len(test_folder.paths))
    for_training, for_evaluation = transforms

    def batches(seed: int, start: int = 0) -> Iterator[Batch]:
        return _read(train_folder, for_training, _keys(train, batch, seed, start), readers)

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        return model(batch[0].to(device, non_blocking=True))  # type: ignore[no-any-return]

    def losses(model: nn.Module, batch: Batch, reduction: str = "none") -> Tensor:
        found = logits(model, batch)
        targets = batch[1].to(found.device, non_blocking=True)
        return F.cross_entropy(found, targets, reduction=reduction)

    def error_rate(model: nn.Module, folder: ImageFolder, part: Tensor) -> float:
        keys = [[(i, (0,)) for i in some.tolist()] for some in part.split(batch)]
        wrong = 0
        with evaluating(model) as device:
            for inputs, targets in _read(folder, for_evaluation, keys, readers):
                wrong += int((model(inputs.to(device)).argmax(1).cpu() != targets).sum())
        return wrong / len(part)

    return Workload(
        name="imagenet",
        metric="top-1 error rate",
        make_model=lambda: make_network(len(train_folder.classes)).to(default_device()),
        make_optimizer=lambda model, rate: torch.optim.SGD(
            model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
        ),
        learning_rate=0.1,
        batches=batches,
        loss=lambda model, batch: losses(model, batch, "mean"),
        losses=losses,
        logits=logits,
        evaluate=lambda model: error_rate(model, train_folder, held_out),
        evaluate_test=lambda model: error_rate(model, test_folder, test),
        budget_seconds=6 * 3600.0,
        signature={
            "model": "resnet-50",
            "classes": len(train_folder.classes),
            "batch": batch,
            "evaluation_images": len(held_out),
            "bn_batches": STATISTICS_BATCHES,
            "readers": readers,
            "dtype": "float32",
            "device": default_device().type,
            "optimizer": "SGD",
        },
        data={
            "source": data.name,
            "images": len(train_folder.paths) + len(test_folder.paths),
            "sha256_of": "names and sizes of the files",
            "sha256": images.digest_of_files(data, (train_folder, test_folder)),
        },
        bn_batches=_Read(batches, STATISTICS_BATCHES),
    )


def load(data: Path) -> Workload:
    """Return the workload of torchvision's ResNet-50 with the usual augmentations.

    Batch, rate, momentum, weight decay and augmentations are those of Kaddour (arXiv 2209.14981),
    whose published code trains 90 epochs under a cosine.

    Raises:
        WorkloadError: torchvision is missing or does not fit this torch; or as `workload` does.
    """
    try:
        from torchvision import models
        from torchvision import transforms as T
    except (ImportError, RuntimeError) as error:
        raise WorkloadError(
            f"torchvision is needed for workload imagenet ({error}): install the build that goes "
            f"with torch {torch.__version__} (https://pytorch.org/get-started/locally)"
        ) from error
    last = [T.ToTensor(), T.Normalize(MEAN, STD)]
    for_training = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), *last])
    for_evaluation = T.Compose([T.Resize(256), T.CenterCrop(224), *last])
    return workload(
        data,
        (for_training, for_evaluation),
        lambda classes: models.resnet50(num_classes=classes),
    )
