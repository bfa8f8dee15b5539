"""Predicting images with several models at once, in a plain torch loop: each image is read and decoded once.

Workers read, decode and resize; integers go to the device; one image at a time comes out, in order, so memory does not
grow with the number of images. It is used for the out-of-fold predictions and by predict.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.data.images import ImageError
from foldwise.errors import Refusal
from foldwise.inference.memory import keep_freed_memory
from foldwise.inference.reading import Batch, Images, Preprocessing, load_batches
from foldwise.inference.tiles import predict_tiled
from foldwise.inference.tta import TTA, average
from foldwise.inference.weights import ModelSpec
from foldwise.models.normalized import Normalized

PRECISIONS = {"32": None, "32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Predictor:
    """Predicts with models of one task and the same number of classes.

    Args:
        models: networks with their specs; they may differ in everything else, preprocessing included.
        tta: views and their mean.
        keep_views: give the probabilities of each view, not their mean.
        tiles: segmentation: predict in tiles of the network's size at the stored resolution, one view. Models whose
            fit is "tiles" always do.
        device: where to compute; the models are moved there.
        batch_size: images in one forward pass, all views counted.
        workers: processes that read images; 0 reads in this one. The result does not depend on it.
        precision: "32", "16-mixed" or "bf16-mixed".

    Raises:
        Refusal: models of different tasks or numbers of classes, or a precision that is not there.
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
            raise Refusal("the models are not of one task with one number of classes: predict them one by one")
        if precision not in PRECISIONS:
            raise Refusal(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.task, self.classes = models[0][1].task, len(models[0][1].classes)
        if tta.draws and self.task == "segmentation":
            raise Refusal("random draws cannot be turned back on masks: choose a TTA of flips, scales or crops")
        if keep_views and self.task == "segmentation" and any(view.crop for view in tta.views):
            raise Refusal("a crop sees a part of the picture only, so its map cannot be kept: choose views or scales")
        fixed = [
            spec.architecture["name"] for _, spec in models if "img_size" in (spec.architecture.get("options") or {})
        ]
        if tta.resamples and fixed:
            raise Refusal(f"{fixed[0]} takes images of one size only: choose a TTA without scales")
        self.device = torch.device(device)
        if precision == "16-mixed" and self.device.type == "cpu":
            raise Refusal("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.nets = [net.to(self.device).eval() for net, _ in models]
        trained = {spec.fit == "tiles" for _, spec in models}
        if len(trained) > 1 and not tiles:
            raise Refusal(
                "some models are trained on crops of the stored resolution, others on whole pictures: predict them in "
                "two commands"
            )
        self.tiles = tiles or True in trained
        if self.tiles and tta.names != ["identity"]:
            raise Refusal("tiles are predicted in one view: choose --tta none")
        self.tta = tta
        self.views = tta.names if keep_views else [tta.name]
        self.batch_size = max(1, batch_size // len(tta.names))
        self.workers = workers
        self.dtype = PRECISIONS[precision]
        wanted = [Preprocessing.of(spec) for _, spec in models]
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
        images = Images(paths, self.preprocessings, self.tta, self.tiles)
        for batch in load_batches(images, self.batch_size, self.workers, self.device):
            if batch.bad:
                raise ImageError("\n".join(item.problem for item in batch.bad))
            results = self._predict_tiles(batch.images) if self.tiles else self._predict_batch(batch)
            yield from zip(batch.numbers, results, strict=True)

    @torch.inference_mode()
    def _predict_batch(self, batch: Batch) -> Iterator[np.ndarray]:
        moved = [images.to(self.device, non_blocking=True) for images in batch.images]
        results = [self.predict_views(net, moved[place]) for net, place in zip(self.nets, self.inputs, strict=True)]
        for row, size in enumerate(batch.sizes):
            own = [result[row] for result in results]
            if self.task == "segmentation":
                maps = [interpolate(views, size, mode="bilinear", align_corners=False) for views in own]
                own = [views.clamp(0, 1) for views in maps]  # rounding of the weights can reach above 1
            yield torch.stack(own).cpu().numpy()

    def _predict_tiles(self, images: list[Tensor]) -> Iterator[np.ndarray]:
        maps = [self.predict_tiles(net, images[place]) for net, place in zip(self.nets, self.inputs, strict=True)]
        yield np.stack(maps)[:, None]

    @torch.inference_mode()
    def predict_views(self, net: Normalized, x: Tensor) -> Tensor:
        """(B, V, C), or maps (B, V, C, H, W) of the size of `x`: images (B, D, channels, H, W) in D draws."""
        results = self.tta.predict(partial(self._probabilities, net), x.flatten(0, 1))
        by_draw = [result.unflatten(0, x.shape[:2])[:, draw] for draw in range(x.shape[1]) for result in results]
        if len(self.views) > 1:
            return torch.stack(by_draw, 1)
        return average(by_draw, self.tta.mean, self.task != "multilabel").unsqueeze(1)

    @torch.inference_mode()
    def predict_tiles(self, net: Normalized, x: Tensor) -> np.ndarray:
        """The map (C, H, W) uint8 of one picture (1, 1, channels, H, W) by tiles."""
        place = self.inputs[self.nets.index(net)]
        return predict_tiled(
            x[0, 0].numpy(),
            partial(self._probabilities, net),
            self.preprocessings[place].image_size,
            self.classes,
            self.batch_size,
        )

    def _probabilities(self, net: Normalized, x: Tensor) -> Tensor:
        with self._precision():
            logits = net(x.to(self.device))
        return logits.float().sigmoid() if self.task == "multilabel" else logits.float().softmax(1)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
