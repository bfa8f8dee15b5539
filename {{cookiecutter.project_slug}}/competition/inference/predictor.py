"""Predicting images with several models at once, in a plain torch loop: each image is read and decoded once.

Workers read, decode and resize; integers go to the device; one image at a time comes out, in order, so memory does not
grow with the number of images. It is used for the out-of-fold predictions and by predict.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from competition.data.images import ImageError, fit_image, read_image, to_unit
from competition.inference.tta import TTA
from competition.inference.weights import ModelSpec
from competition.models.networks import Normalized

PRECISIONS = {"32": None, "32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images; models that agree share them."""

    mode: str
    scale: float | None
    image_size: Sequence[int]
    fit: str
    channels: int


# The image as each preprocessing wants it, its stored (height, width), and what is wrong with it.
Item = tuple[list[Tensor], tuple[int, int], str | None]


class Predictor:
    """Predicts with models of one task and the same number of classes.

    Args:
        models: networks with their specs; they may differ in everything else, preprocessing included.
        tta: views and their mean.
        device: where to compute; the models are moved there.
        batch_size: images in one forward pass, all views counted.
        workers: processes that read images; 0 reads in this one. The result does not depend on it.
        precision: "32", "16-mixed" or "bf16-mixed".

    Raises:
        ValueError: models of different tasks or numbers of classes, or a precision that is not there.
    """

    def __init__(
        self,
        models: Sequence[tuple[Normalized, ModelSpec]],
        tta: TTA,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        workers: int = 2,
        precision: str = "32",
    ) -> None:
        if len({(spec.task, len(spec.classes)) for _, spec in models}) != 1:
            raise ValueError("the models are not of one task with one number of classes: predict them one by one")
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        if precision == "16-mixed" and self.device.type == "cpu":
            raise ValueError("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed")
        self.nets = [net.to(self.device).eval() for net, _ in models]
        self.task = models[0][1].task
        self.tta = tta
        self.batch_size = max(1, batch_size // len(tta.views))
        self.workers = workers
        self.dtype = PRECISIONS[precision]
        wanted = [Preprocessing(spec.mode, spec.scale, spec.image_size, spec.fit, spec.channels) for _, spec in models]
        self.preprocessings = list(dict.fromkeys(wanted))
        self.inputs = [self.preprocessings.index(preprocessing) for preprocessing in wanted]

    def predict(self, paths: Sequence[Path]) -> Iterator[tuple[int, np.ndarray]]:
        """Predict image files, in order.

        Yields:
            (index, probability): float32 (M, C) of M models, or (M, C, H, W) at the stored size of this image.

        Raises:
            ImageError: a file cannot be read, or has other channels than a model.
        """
        if not len(paths):
            return
        loader = DataLoader(
            _Images(list(paths), self.preprocessings),
            batch_size=self.batch_size,
            num_workers=min(self.workers, len(paths)),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own, so that predicting does not move the caller's
        )
        index = 0
        for images, sizes, error in loader:
            if error:
                raise ImageError(error)
            for result in self._predict_batch(images, sizes):
                yield index, result
                index += 1

    @torch.inference_mode()
    def _predict_batch(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        moved = [batch.to(self.device, non_blocking=True) for batch in images]
        exclusive = self.task != "multilabel"
        results = [
            self.tta.predict(partial(self._probabilities, net), moved[place], exclusive)
            for net, place in zip(self.nets, self.inputs, strict=True)
        ]
        for row, size in enumerate(sizes):
            if self.task == "segmentation":
                maps = [interpolate(r[row : row + 1], size, mode="bilinear", align_corners=False) for r in results]
                yield torch.cat(maps).clamp(0, 1).cpu().numpy()  # rounding of the weights can reach above 1
            else:
                yield torch.stack([result[row] for result in results]).cpu().numpy()

    def _probabilities(self, net: Normalized, x: Tensor) -> Tensor:
        with self._precision():
            logits = net(x)
        return logits.float().sigmoid() if self.task == "multilabel" else logits.float().softmax(1)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


class _Images(Dataset):
    """An image as each preprocessing wants it, and its stored (height, width); or what is wrong with it, as a text.

    The text, because a DataLoader wraps an error of its workers in their traceback.
    """

    def __init__(self, paths: list[Path], preprocessings: list[Preprocessing]) -> None:
        self.paths, self.preprocessings = paths, preprocessings

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        read: dict[str, np.ndarray] = {}
        tensors = []
        for wanted in self.preprocessings:
            if wanted.mode not in read:
                try:
                    read[wanted.mode] = read_image(self.paths[index], wanted.mode)
                except ImageError as error:
                    return [], (0, 0), str(error)
            image = read[wanted.mode]
            if image.shape[2] != wanted.channels:
                problem = f"has {image.shape[2]} channels, and the model was trained on {wanted.channels}"
                return [], (0, 0), f"{self.paths[index]} {problem}"
            image = fit_image(to_unit(image, wanted.scale), wanted.image_size, wanted.fit)
            tensors.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        height, width = next(iter(read.values())).shape[:2]
        return tensors, (height, width), None


def _collate(items: list[Item]) -> tuple[list[Tensor], list[tuple[int, int]], str | None]:
    """A batch for each preprocessing, the sizes, and all errors in one text."""
    errors = [error for _, _, error in items if error]
    if errors:
        return [], [], "\n".join(errors)
    batches = []
    for tensors in zip(*(tensors for tensors, _, _ in items), strict=True):
        if len({tensor.dtype for tensor in tensors}) > 1:  # 8-bit images among 16-bit ones
            tensors = tuple(tensor if tensor.is_floating_point() else tensor.float() / 255 for tensor in tensors)
        batches.append(torch.stack(tensors))
    return batches, [size for _, size, _ in items], None


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; their threads would get in each other's way
