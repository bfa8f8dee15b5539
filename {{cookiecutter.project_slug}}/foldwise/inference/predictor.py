"""Prediction of items with several models at once, in a plain torch loop: each item is read and decoded once.

Workers read, decode and resize; integers go to the device; one item at a time comes out, in order, so memory does not
grow with the number of items. Out-of-fold predictions, predict.py and bundles use it.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.data.batches import to_device, unpack
from foldwise.data.fields import seen_spatial
from foldwise.data.images import ImageError
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.device import keep_freed_memory
from foldwise.inference.reading import InputSpec, Items, ReadBatch, load_batches
from foldwise.inference.tiles import predict_tiled
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model
from foldwise.models.network import Batch
from foldwise.tasks.outputs import activate
from foldwise.tasks.views import View, view_batches

PRECISIONS = {"32": None, "32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
Values = dict[str, np.ndarray]  # of an item, by the name of the output


class Predictor:
    """Predicts with models that have the same outputs.

    Args:
        models: they may differ in everything else, reading included; they are moved to the device.
        batch_size: items in one forward pass, all views counted.
        workers: processes that read; 0 reads in this one. The result does not depend on it.
        precision: "32", "16-mixed" or "bf16-mixed".
        keep_views: give the values of each view, not their mean.
        tiles: maps: predict in tiles of the network's size at the stored resolution, in one view. Models whose fit is
            "tiles" always do.

    Raises:
        Refusal: models, choices or a precision that do not go together.
    """

    def __init__(
        self,
        models: Sequence[Model],
        tta: TTA,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        workers: int = 2,
        precision: str = "32",
        keep_views: bool = False,
        tiles: bool = False,
    ) -> None:
        self.models, self.tta, self.workers = models, tta, workers
        self.outputs = models[0].spec.outputs
        self.tasks = {output.name: output.meaning for output in self.outputs}
        self.device = torch.device(device)
        self.tiles = tiles or models[0].spec.fit == "tiles"
        self._check_models(tiles)
        self._check_views(keep_views)
        if precision not in PRECISIONS:
            raise Refusal(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if precision == "16-mixed" and self.device.type == "cpu":
            raise Refusal("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed")
        self.dtype = PRECISIONS[precision]
        if self.device.type == "cpu":
            keep_freed_memory()
        for model in models:
            model.network.to(self.device).eval()
        self.views = tta.names if keep_views else [tta.name]
        self.batch_size = max(1, batch_size // len(tta.names))
        self.inputs = [InputSpec.of(model) for model in models]
        self.spatial = [seen_spatial(model.samples.fields) for model in models]

    def _check_models(self, tiles: bool) -> None:
        kinds = [[(one.name, one.task, len(one.columns)) for one in model.spec.outputs] for model in self.models]
        if any(kind != kinds[0] for kind in kinds):
            raise Refusal("the models are not of one task with one number of classes: predict them one by one")
        if not tiles and len({model.spec.fit == "tiles" for model in self.models}) > 1:
            raise Refusal(
                "some models are trained on crops of the stored resolution, others on whole pictures: predict them in "
                "two commands"
            )
        if self.tiles and any(task.kind != "maps" for task in self.tasks.values()):
            raise Refusal("tiles are for masks: an output of this run is about the whole picture")

    def _check_views(self, keep_views: bool) -> None:
        maps = any(task.kind == "maps" for task in self.tasks.values())
        if self.tta.draws and maps:
            raise Refusal("random draws cannot be turned back on masks: choose a TTA of flips, scales or crops")
        if keep_views and maps and any(view.crop for view in self.tta.views):
            raise Refusal("a crop sees a part of the picture only, so its map cannot be kept: choose views or scales")
        networks = [model.spec.network for model in self.models]
        fixed = [each.get("name", "the network") for each in networks if "img_size" in (each.get("options") or {})]
        if fixed and any(view.scale != 1 for view in self.tta.views):
            raise Refusal(f"{fixed[0]} takes images of one size only: choose a TTA without scales")
        if self.tiles and self.tta.names != ["identity"]:
            raise Refusal("tiles are predicted in one view: choose --tta none")

    def predict(self, table: Table, items: Sequence[int] | None = None) -> Iterator[tuple[int, Values]]:
        """Predict items of a table, in order.

        Args:
            table: of the rows that the items are made of.
            items: by their numbers; None: all.

        Yields:
            (place among the items, values of each output): float32 (M, V, C) of M models and the `views`, or
            (M, V, C, H, W) at the stored size of this item; uint8 with tiles.

        Raises:
            ImageError: a file cannot be read, or has other channels than a model.
        """
        if items is not None and not len(items):
            return
        read = Items(table, dict(zip(self.inputs, self.models, strict=True)), self.tta, items, self.tiles)
        for batch in load_batches(read, self.batch_size, self.workers, self.device):
            if batch.bad:
                raise ImageError("\n".join(item.problem for item in batch.bad))
            results = self._predict_tiles(batch) if self.tiles else self._predict_batch(batch)
            yield from zip(batch.numbers, results, strict=True)

    def _predict_batch(self, read: ReadBatch) -> Iterator[Values]:
        batches = {inputs: to_device(packed, self.device) for inputs, packed in read.batches.items()}
        found = [self.predict_views(number, batches[inputs]) for number, inputs in enumerate(self.inputs)]
        for row, size in enumerate(read.sizes):
            yield {name: self.at_size(name, [values[name][row] for values in found], size) for name in self.tasks}

    @torch.inference_mode()
    def at_size(self, name: str, values: list[Tensor], size: Sequence[int]) -> np.ndarray:
        """The values (M, V, C, ...) of an item; maps, which may differ in size between models, at its stored size."""
        if self.tasks[name].kind == "maps":
            planes = [interpolate(model, tuple(size), mode="bilinear", align_corners=False) for model in values]
            values = [plane.clamp(0, 1) for plane in planes]  # rounding of the weights can reach above 1
        return torch.stack(values).cpu().numpy()

    def _predict_tiles(self, read: ReadBatch) -> Iterator[Values]:
        batches = {inputs: unpack(packed) for inputs, packed in read.batches.items()}
        maps = [self.predict_tiles(number, batches[inputs]) for number, inputs in enumerate(self.inputs)]
        yield {name: np.stack([each[name] for each in maps])[:, None] for name in self.tasks}

    @torch.inference_mode()
    def predict_views(
        self, model: int, batch: Batch, views: Sequence[View] | None = None, mean: str | None = None
    ) -> dict[str, Tensor]:
        """The values (B, V, C, ...) of each output of one model, by its number; maps at the network's size.

        Args:
            batch: on the device. With draws, spatial fields are (B, D, ...), ragged ones (B, N, D, ...).
            views, mean: in place of those of the TTA.
        """
        draws = self.tta.draws or 1
        if self.tta.draws:
            batch = {name: self._split_draws(name, value, model, batch) for name, value in batch.items()}
        found = {}
        for name, of_views in self._values_of_views(model, batch, views or self.tta.views).items():
            by_draw = [value.unflatten(0, (-1, draws))[:, draw] for draw in range(draws) for value in of_views]
            if len(self.views) > 1:
                found[name] = torch.stack(by_draw, 1)
            else:
                found[name] = self.tasks[name].average(torch.stack(by_draw), mean or self.tta.mean).unsqueeze(1)
        return found

    def _split_draws(self, name: str, value: Tensor, model: int, batch: Batch) -> Tensor:
        """(B * D, ...) of a field."""
        if name not in self.spatial[model]:
            return value.repeat_interleave(self.tta.draws, 0)
        ragged = f"{name}_valid" in batch
        return (value.transpose(1, 2) if ragged else value).flatten(0, 1)

    def _values_of_views(self, model: int, batch: Batch, views: Sequence[View]) -> dict[str, list[Tensor]]:
        """The values of each output in each view, on the image as it lies in the batch."""
        spatial = self.spatial[model]
        if not spatial or [view.name for view in views] == ["identity"]:
            return {name: [value] * len(views) for name, value in self._values(model, batch).items()}
        size = batch[spatial[0]].shape[-2:]
        found: dict[str, dict[int, Tensor]] = {name: {} for name in self.tasks}
        for numbers, together in view_batches(views, batch, spatial):
            for name, value in self._values(model, together).items():
                for number, own in zip(numbers, value.chunk(len(numbers)), strict=True):
                    found[name][number] = self.tasks[name].undo(own, views[number], size)
        return {name: [by_view[number] for number in range(len(views))] for name, by_view in found.items()}

    @torch.inference_mode()
    def predict_tiles(self, model: int, batch: Batch, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """The map (C, H, W) uint8 of each output of one item, by tiles; so many in a pass, in place of the usual."""
        columns = {output.name: len(output.columns) for output in self.outputs}
        size = self.models[model].spec.image_size
        network = partial(self._values, model)
        return predict_tiled(batch, self.spatial[model], network, size, columns, batch_size or self.batch_size)

    def _values(self, model: int, batch: Batch) -> dict[str, Tensor]:
        """The activated values of each output."""
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with autocast:
            raw = self.models[model].network({name: value.to(self.device) for name, value in batch.items()})
        return activate(raw, self.models[model].spec.outputs)
