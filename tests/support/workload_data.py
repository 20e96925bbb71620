"""The large workloads at a size that trains in seconds, and images made for them."""

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image
from torch import nn

from baselines.workloads import Workload, cifar10, gpt, imagenet, roberta
from baselines.workloads.data import corpus

SIDE = 16


def make_images(folder: Path, per_class: int, suffix: str, seed: int) -> None:
    """Noise that is brighter in one half, above or below, or all over."""
    random = np.random.default_rng(seed)
    bright = {"above": (np.s_[: SIDE // 2], 120), "below": (np.s_[SIDE // 2 :], 120)}
    for name, (half, more) in {**bright, "even": (np.s_[:], 60)}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = random.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[half] += more
            Image.fromarray(pixels).save(folder / name / f"{i:04}.{suffix}")


class Knows(nn.Module):
    """Tells the classes of `make_images` apart without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        above, below = images.split(SIDE // 2, dim=2)
        more = (above - below).mean((1, 2, 3))
        return torch.stack([more, -more, self.threshold.expand_as(more)], dim=1)


def make_cifar(folder: Path) -> Path:
    make_images(folder / "train", 90, "png", 0)
    make_images(folder / "test", 10, "png", 1)
    return folder


def tiny_cifar(folder: Path) -> Workload:
    return cifar10.workload(folder, batch=32, blocks=1)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 128 - 1


def augmented(image: Image.Image) -> torch.Tensor:
    # As torchvision's transforms: from torch's global generator.
    return to_tensor(image) + 0.1 * torch.randn(3, 1, 1)


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, classes)
    )


def make_imagenet(folder: Path) -> Path:
    make_images(folder / "train", 104, "JPEG", 0)
    make_images(folder / "val", 6, "JPEG", 1)
    return folder


def tiny_imagenet(folder: Path, readers: int = 0) -> Workload:
    return imagenet.workload(folder, (augmented, to_tensor), network, batch=16, readers=readers)


def write_words(path: Path) -> Path:
    """The first third of CPython's language reference: real text that is always there."""
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:150_000])
    return path


def tiny_gpt(path: Path) -> Workload:
    size = gpt.Size(layers=1, width=32, heads=2, context=32, vocabulary=400)
    return gpt.workload(corpus.read(path), size, "gpt-tiny")


def tiny_roberta(path: Path) -> Workload:
    size = roberta.Size(layers=1, width=32, heads=2, context=34, vocabulary=400, batch=8)
    return roberta.workload(corpus.read(path), size, "roberta-tiny")
