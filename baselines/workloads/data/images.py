"""Images in class folders: `part/class/image.png`, read with Pillow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.workloads.base import WorkloadError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, class by class and by name.

    Attributes:
        classes: names of the class folders, sorted.
        paths: all images.
        labels: the class index of each, (len(paths),) int64.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Tensor

    def split(self, every: int) -> tuple[Tensor, Tensor]:
        """Return indices of a larger and a smaller part: the last of every `every` of a class.

        Classes have the same share in both parts, whatever order a file system lists them in.
        """
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        position = torch.cat([torch.arange(count) for count in counts])
        held_out = position % every == every - 1
        return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def list_images(folder: Path) -> ImageFolder:
    """List the images of a part.

    Raises:
        WorkloadError: there is no such folder, or it holds no class folders with images.
    """
    try:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [
            (path, label)
            for label, below in enumerate(classes)
            for path in sorted(below.iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
    except OSError as error:
        raise WorkloadError(f"{folder}: {error.strerror}") from error
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    empty = [path.name for i, path in enumerate(classes) if not (labels == i).any()]
    if not classes or empty:
        missing = f"{empty[0]} holds none" if empty else "it holds no folders"
        raise WorkloadError(
            f"{folder} must hold a folder of images ({', '.join(sorted(SUFFIXES))}) for each "
            f"class: {missing}"
        )
    return ImageFolder(tuple(p.name for p in classes), tuple(path for path, _ in found), labels)


def read_parts(data: Path, train: str, test: str) -> tuple[ImageFolder, ImageFolder]:
    """List two parts of a data set, which must have the same classes.

    Raises:
        WorkloadError: one of them is missing, or their classes differ.
    """
    first, second = list_images(data / train), list_images(data / test)
    if first.classes != second.classes:
        differ = sorted(set(first.classes) ^ set(second.classes))
        raise WorkloadError(
            f"{data}: {train} and {test} must hold the same classes; these are in one of them "
            f"alone: {', '.join(differ[:5])}"
        )
    return first, second


def open_image(path: Path) -> Any:
    """Open a Pillow image in RGB.

    Raises:
        WorkloadError: Pillow is not installed, or this is no image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise WorkloadError(f"Pillow is needed to read images ({error}): pip install pillow") from (
            error
        )
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:  # Pillow's own error for a file that is no image is one too.
        raise WorkloadError(f"{path} cannot be read as an image: {error}") from error


def read_all(paths: Sequence[Path]) -> Tensor:
    """Return all images in memory, (images, 3, height, width) uint8.

    Raises:
        WorkloadError: one cannot be read, or they are not of one size.
    """
    pixels = [torch.from_numpy(np.array(open_image(path))) for path in paths]
    for path, image in zip(paths, pixels, strict=True):
        if image.shape != pixels[0].shape:
            sizes = f"{tuple(image.shape[:2])} and not {tuple(pixels[0].shape[:2])}"
            raise WorkloadError(f"{path}: images must be of one size; this one is {sizes}")
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous()


def digest_of_files(root: Path, folders: Sequence[ImageFolder]) -> str:
    """Return the SHA-256 of all files' names and sizes: the data are too large to be read twice."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in folder.paths:
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
