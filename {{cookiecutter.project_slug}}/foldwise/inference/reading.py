"""Reading images for prediction: each is decoded once, by a worker, and fitted to every network that wants it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foldwise.data.augmentation import Augmentation, build_transforms
from foldwise.data.dataset import sample_seed
from foldwise.data.images import ImageError, fit_image, read_image, to_unit
from foldwise.inference.tta import TTA
from foldwise.inference.weights import ModelSpec


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images; models that agree share them."""

    mode: str
    scale: float | None
    image_size: Sequence[int]
    fit: str
    channels: int

    @classmethod
    def of(cls, spec: ModelSpec) -> "Preprocessing":
        return cls(spec.mode, spec.scale, spec.image_size, spec.fit, spec.channels)


class Item(NamedTuple):
    """An image as each preprocessing wants it, (draws, channels, H, W), and its stored (height, width); or its problem.

    A problem is a text, because a DataLoader wraps an error of its workers in their traceback.
    """

    number: int
    images: list[Tensor]
    size: tuple[int, int]
    problem: str = ""


class Batch(NamedTuple):
    """The `numbers` of the images that could be read, their batch for each preprocessing, and their stored sizes;
    beside them the items of those that could not."""

    numbers: list[int]
    images: list[Tensor]
    sizes: list[tuple[int, int]]
    bad: list[Item]


class Images(Dataset):
    """Image files; `tiles` leaves them at their stored size."""

    def __init__(
        self, paths: Sequence[Path], preprocessings: Sequence[Preprocessing], tta: TTA, tiles: bool = False
    ) -> None:
        self.paths, self.preprocessings, self.draws, self.tiles = list(paths), preprocessings, tta.draws, tiles
        self.augmentation = Augmentation(build_transforms(tta.transforms)) if tta.draws else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Item:
        path = self.paths[number]
        read: dict[str, np.ndarray] = {}
        tensors = []
        size = (0, 0)
        for wanted in self.preprocessings:
            if wanted.mode not in read:
                try:
                    read[wanted.mode] = read_image(path, wanted.mode)
                except ImageError as error:
                    return Item(number, [], size, str(error))
            image = read[wanted.mode]
            size = image.shape[:2]
            if image.shape[2] != wanted.channels:
                problem = f"has {image.shape[2]} channels, and the model was trained on {wanted.channels}"
                return Item(number, [], size, f"{path} {problem}")
            drawn = self._draws(to_unit(image, wanted.scale), path.name)
            fitted = drawn if self.tiles else [fit_image(draw, wanted.image_size, wanted.fit) for draw in drawn]
            tensors.append(torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in fitted])))
        return Item(number, tensors, size)

    def _draws(self, image: np.ndarray, name: str) -> list[np.ndarray]:
        """The image, or so many draws of it, which depend on its name alone."""
        if self.augmentation is None:
            return [image]
        return [self.augmentation(image, None, sample_seed(0, draw, name))[0] for draw in range(self.draws)]


def load_batches(images: Images, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """A loader of `Batch`es in order; with tiles, of one image each."""
    return DataLoader(
        images,
        batch_size=1 if images.tiles else batch_size,
        num_workers=min(workers, len(images)),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, so that predicting does not move the caller's
    )


def _collate(items: list[Item]) -> Batch:
    good = [item for item in items if not item.problem]
    batches = []
    for tensors in zip(*(item.images for item in good), strict=True):
        if len({tensor.dtype for tensor in tensors}) > 1:  # 8-bit images among 16-bit ones
            tensors = tuple(tensor if tensor.is_floating_point() else tensor.float() / 255 for tensor in tensors)
        batches.append(torch.stack(tensors))
    bad = [item for item in items if item.problem]
    return Batch([item.number for item in good], batches, [item.size for item in good], bad)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; their threads would get in each other's way
