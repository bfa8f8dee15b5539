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

from competition.data.augmentation import Augmentation, build_transforms
from competition.data.dataset import sample_seed
from competition.data.images import ImageError, fit_image, read_image, to_unit
from competition.inference.tiles import predict_tiled
from competition.inference.tta import TTA, average
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
        keep_views: give the probabilities of each view, not their mean.
        tiles: segmentation: predict in tiles of the network's size at the stored resolution, one view.
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
        keep_views: bool = False,
        tiles: bool = False,
    ) -> None:
        if len({(spec.task, len(spec.classes)) for _, spec in models}) != 1:
            raise ValueError("the models are not of one task with one number of classes: predict them one by one")
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.task, self.classes = models[0][1].task, len(models[0][1].classes)
        if tta.draws and self.task == "segmentation":
            raise ValueError("random draws cannot be turned back on masks: choose a TTA of flips, scales or crops")
        if keep_views and self.task == "segmentation" and any(view.crop for view in tta.views):
            raise ValueError(
                "a crop sees a part of the picture only, so its map cannot be kept: choose views or scales"
            )
        fixed = [
            spec.architecture["name"] for _, spec in models if "img_size" in (spec.architecture.get("options") or {})
        ]
        if tta.resamples and fixed:
            raise ValueError(f"{fixed[0]} takes images of one size only: choose a TTA without scales")
        self.device = torch.device(device)
        if precision == "16-mixed" and self.device.type == "cpu":
            raise ValueError("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed")
        self.nets = [net.to(self.device).eval() for net, _ in models]
        if tiles and tta.names != ["identity"]:
            raise ValueError("tiles are predicted in one view: choose --tta none")
        self.tiles = tiles
        self.tta = tta
        self.views = tta.names if keep_views else [tta.name]
        self.batch_size = max(1, batch_size // len(tta.names))
        self.workers = workers
        self.dtype = PRECISIONS[precision]
        wanted = [Preprocessing(spec.mode, spec.scale, spec.image_size, spec.fit, spec.channels) for _, spec in models]
        self.preprocessings = list(dict.fromkeys(wanted))
        self.inputs = [self.preprocessings.index(preprocessing) for preprocessing in wanted]

    def predict(self, paths: Sequence[Path]) -> Iterator[tuple[int, np.ndarray]]:
        """Predict image files, in order.

        Yields:
            (index, probability): float32 (M, V, C) of M models and the `views`, or (M, V, C, H, W) at the stored
            size of this image; uint8 with tiles.

        Raises:
            ImageError: a file cannot be read, or has other channels than a model.
        """
        if not len(paths):
            return
        loader = DataLoader(
            _Images(list(paths), self.preprocessings, self.tta, self.tiles),
            batch_size=1 if self.tiles else self.batch_size,
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
            results = self._predict_tiles(images) if self.tiles else self._predict_batch(images, sizes)
            for result in results:
                yield index, result
                index += 1

    @torch.inference_mode()
    def _predict_batch(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        moved = [batch.to(self.device, non_blocking=True) for batch in images]
        results = [self._views(net, moved[place]) for net, place in zip(self.nets, self.inputs, strict=True)]
        for row, size in enumerate(sizes):
            own = [result[row] for result in results]
            if self.task == "segmentation":
                maps = [interpolate(views, size, mode="bilinear", align_corners=False) for views in own]
                own = [views.clamp(0, 1) for views in maps]  # rounding of the weights can reach above 1
            yield torch.stack(own).cpu().numpy()

    @torch.inference_mode()
    def _predict_tiles(self, images: list[Tensor]) -> Iterator[np.ndarray]:
        maps = []
        for net, place in zip(self.nets, self.inputs, strict=True):
            maps.append(
                predict_tiled(
                    images[place][0, 0].numpy(),
                    partial(self._probabilities, net),
                    self.preprocessings[place].image_size,
                    self.classes,
                    self.batch_size,
                )
            )
        yield np.stack(maps)[:, None]

    def _views(self, net: Normalized, x: Tensor) -> Tensor:
        """(B, V, C) or (B, V, C, H, W) of images (B, D, channels, H, W) in D draws."""
        results = self.tta.predict(partial(self._probabilities, net), x.flatten(0, 1))
        by_draw = [result.unflatten(0, x.shape[:2])[:, draw] for draw in range(x.shape[1]) for result in results]
        if len(self.views) > 1:
            return torch.stack(by_draw, 1)
        return average(by_draw, self.tta.mean, self.task != "multilabel").unsqueeze(1)

    def _probabilities(self, net: Normalized, x: Tensor) -> Tensor:
        with self._precision():
            logits = net(x.to(self.device))
        return logits.float().sigmoid() if self.task == "multilabel" else logits.float().softmax(1)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


class _Images(Dataset):
    """An image as each preprocessing wants it (draws, C, H, W), and its stored (height, width); or what is wrong.

    An error is a text, because a DataLoader wraps an error of its workers in their traceback.
    """

    def __init__(self, paths: list[Path], preprocessings: list[Preprocessing], tta: TTA, tiles: bool) -> None:
        self.paths, self.preprocessings, self.draws, self.tiles = paths, preprocessings, tta.draws, tiles
        self.augmentation = Augmentation(build_transforms(tta.transforms)) if tta.draws else None

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
            drawn = self._draws(to_unit(image, wanted.scale), self.paths[index].name)
            fitted = drawn if self.tiles else [fit_image(draw, wanted.image_size, wanted.fit) for draw in drawn]
            tensors.append(torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in fitted])))
        height, width = next(iter(read.values())).shape[:2]
        return tensors, (height, width), None

    def _draws(self, image: np.ndarray, name: str) -> list[np.ndarray]:
        """The image, or so many draws of it, which depend on its name alone."""
        if self.augmentation is None:
            return [image]
        return [self.augmentation(image, None, sample_seed(0, draw, name))[0] for draw in range(self.draws)]


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
