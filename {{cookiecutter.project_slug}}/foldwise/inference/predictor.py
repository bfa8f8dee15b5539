"""Prediction loop for several models at once, used for out-of-fold predictions, predict.py and bundles.

Each item is read and decoded once. Results come out one item at a time, in order, so memory does not grow with the
number of items.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.data.batches import to_device, unpack
from foldwise.data.decoding import FileNote
from foldwise.data.fields import seen_spatial
from foldwise.data.images import ImageError
from foldwise.data.problems import shorten
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.device import keep_freed_memory
from foldwise.inference.items import InputSpec, Items
from foldwise.inference.reading import ReadBatch, load_batches
from foldwise.inference.tiles import predict_tiled
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, with_frames, with_margin
from foldwise.models.network import Batch
from foldwise.tasks.outputs import activate
from foldwise.tasks.views import View, view_batches

PRECISIONS = {"32": None, "32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
Values = dict[str, np.ndarray]  # output name -> values of one item


class Predictor:
    """Predicts with models that have the same outputs; they may differ in everything else.

    Args:
        batch_size: images per forward pass, counting every view.
        keep_views: return the values of each view instead of their mean.
        tiles: segmentation: predict in tiles at the stored resolution. Models with fit "tiles" always do.
        skip_bad: leave out items that cannot be read, instead of an ImageError.

    Attributes:
        notes: of the files that were read, for `describe_notes`.
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
        skip_bad: bool = False,
    ) -> None:
        self.skip_bad, self.notes = skip_bad, list[FileNote]()
        models = [with_frames(model, tta.frames) for model in models]
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
        cut = {
            (number, margin): with_margin(model, margin)
            for number, model in enumerate(models)
            for margin in tta.margins
        }
        self.inputs = {key: InputSpec.of(model) for key, model in cut.items()}
        self.read = {self.inputs[key]: model for key, model in cut.items()}
        self.spatial = [seen_spatial(model.samples.fields) for model in models]

    def _check_models(self, tiles: bool) -> None:
        outputs = [[(one.name, one.task, len(one.columns)) for one in model.spec.outputs] for model in self.models]
        if any(each != outputs[0] for each in outputs):
            raise Refusal("the models differ in task or number of classes: predict them one by one")
        if not tiles and len({model.spec.fit == "tiles" for model in self.models}) > 1:
            raise Refusal(
                "some models are trained on crops at the stored resolution, others on whole images: predict them in "
                "two commands"
            )
        if self.tiles and any(task.kind != "maps" for task in self.tasks.values()):
            raise Refusal("tiles are for segmentation, but an output of this run is not a mask: remove --tiles")

    def _check_views(self, keep_views: bool) -> None:
        maps, main = any(task.kind == "maps" for task in self.tasks.values()), self.outputs[0].meaning
        if len(self.tta.names) > 1 and self.tta.mean not in main.means:
            raise Refusal(
                f"the task {main.name} has no {self.tta.mean} mean: set tta.mean to {' or '.join(main.means)}"
            )
        if self.tta.draws and maps:
            raise Refusal("random draws cannot be undone on masks: choose a TTA of flips, scales or crops")
        if keep_views and maps and any(view.crop for view in self.tta.views):
            raise Refusal(
                "--keep-views cannot keep the map of a crop, which covers only part of the image: choose a "
                "TTA without crops"
            )
        networks = [model.spec.network for model in self.models]
        fixed = [each.get("name", "the network") for each in networks if "img_size" in (each.get("options") or {})]
        if fixed and any(view.scale != 1 for view in self.tta.views):
            raise Refusal(f"{fixed[0]} has a fixed input size: choose a TTA without scales")
        if self.tiles and self.tta.names != ["identity"]:
            raise Refusal("tiles are predicted in one view: choose --tta none")

    def predict(self, table: Table, items: Sequence[int] | None = None) -> Iterator[tuple[int, Values]]:
        """Predict items of a table, in order; default: all.

        Yields:
            (index in `items`, values by output name): float32 (M, V, C) for M models and V views, or (M, V, C, H, W)
            at the item's stored size; uint8 with tiles.

        Raises:
            ImageError: a file cannot be read, or has the wrong number of channels.
        """
        if items is not None and not len(items):
            return
        read = Items(table, self.read, self.tta, items, self.tiles)
        for batch in load_batches(read, self.batch_size, self.workers, self.device):
            self.notes += batch.notes
            if batch.bad and not self.skip_bad:
                raise ImageError("\n".join(shorten([item.problem for item in batch.bad])))
            if not batch.numbers:
                continue
            results = self._predict_tiles(batch) if self.tiles else self._predict_batch(batch)
            yield from zip(batch.numbers, results, strict=True)

    def _predict_batch(self, read: ReadBatch) -> Iterator[Values]:
        batches = {inputs: to_device(packed, self.device) for inputs, packed in read.batches.items()}
        predicted = [self.predict_views(model, batches) for model in range(len(self.models))]
        for row, size in enumerate(read.sizes):
            yield {name: self.at_size(name, [values[name][row] for values in predicted], size) for name in self.tasks}

    @torch.inference_mode()
    def at_size(self, name: str, values: list[Tensor], size: Sequence[int]) -> np.ndarray:
        """Stack the values (V, C, ...) of the models to (M, V, C, ...); maps are resized to `size`."""
        if self.tasks[name].kind == "maps":
            planes = [interpolate(model, tuple(size), mode="bilinear", align_corners=False) for model in values]
            values = [plane.clamp(0, 1) for plane in planes]  # rounding in interpolate can exceed 1
        return torch.stack(values).cpu().numpy()

    def _predict_tiles(self, read: ReadBatch) -> Iterator[Values]:
        batches = {inputs: unpack(packed) for inputs, packed in read.batches.items()}
        maps = [self.predict_tiles(model, batches) for model in range(len(self.models))]
        yield {name: np.stack([each[name] for each in maps])[:, None] for name in self.tasks}

    @torch.inference_mode()
    def predict_views(
        self,
        model: int,
        batches: Mapping[InputSpec, Batch],
        views: Sequence[View] | None = None,
        mean: str | None = None,
    ) -> dict[str, Tensor]:
        """Predict a batch with the model at index `model`: (B, V, C, ...) by output; maps at the network's size.

        Args:
            batches: of each of `read`, on the device. With draws, spatial fields are (B, D, ...), ragged ones
                (B, N, D, ...).
            views, mean: replace those of the TTA.
        """
        draws = self.tta.draws or 1
        chosen = list(views or self.tta.views)
        by_view: dict[str, dict[View, Tensor]] = {name: {} for name in self.tasks}
        for margin in dict.fromkeys(view.margin for view in chosen):
            batch = batches[self.inputs[model, margin]]
            if self.tta.draws:
                batch = {name: self._split_draws(name, value, model, batch) for name, value in batch.items()}
            of_margin = [view for view in chosen if view.margin == margin]
            for name, of_views in self._values_of_views(model, batch, of_margin).items():
                by_view[name] |= zip(of_margin, of_views, strict=True)
        predicted = {}
        for name, of_view in by_view.items():
            of_views = [of_view[view] for view in chosen]
            by_draw = [value.unflatten(0, (-1, draws))[:, draw] for draw in range(draws) for value in of_views]
            if len(self.views) > 1:
                predicted[name] = torch.stack(by_draw, 1)
            else:
                predicted[name] = self.tasks[name].average(torch.stack(by_draw), mean or self.tta.mean).unsqueeze(1)
        return predicted

    def _split_draws(self, name: str, value: Tensor, model: int, batch: Batch) -> Tensor:
        """Flatten a field to (B * D, ...)."""
        if name not in self.spatial[model]:
            return value.repeat_interleave(self.tta.draws, 0)
        ragged = f"{name}_valid" in batch
        return (value.transpose(1, 2) if ragged else value).flatten(0, 1)

    def _values_of_views(self, model: int, batch: Batch, views: Sequence[View]) -> dict[str, list[Tensor]]:
        """Predict every view and undo it: one (B, C, ...) per view, by output."""
        spatial = self.spatial[model]
        if not spatial or [view.name for view in views] == ["identity"]:
            return {name: [value] * len(views) for name, value in self._values(model, batch).items()}
        size = batch[spatial[0]].shape[-2:]
        undone: dict[str, dict[int, Tensor]] = {name: {} for name in self.tasks}
        for indices, view_batch in view_batches(views, batch, spatial):
            for name, value in self._values(model, view_batch).items():
                for index, of_view in zip(indices, value.chunk(len(indices)), strict=True):
                    undone[name][index] = self.tasks[name].undo(of_view, views[index], size)
        return {name: [by_view[index] for index in range(len(views))] for name, by_view in undone.items()}

    @torch.inference_mode()
    def predict_tiles(
        self, model: int, batches: Mapping[InputSpec, Batch], batch_size: int | None = None
    ) -> dict[str, np.ndarray]:
        """Predict the maps (C, H, W) uint8 of one item by tiles, `batch_size` tiles per pass."""
        columns = {output.name: len(output.columns) for output in self.outputs}
        size = self.models[model].spec.image_size
        network, batch = partial(self._values, model), batches[self.inputs[model, None]]
        return predict_tiled(batch, self.spatial[model], network, size, columns, batch_size or self.batch_size)

    def _values(self, model: int, batch: Batch) -> dict[str, Tensor]:
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with autocast:
            raw = self.models[model].network({name: value.to(self.device) for name, value in batch.items()})
        return activate(raw, self.models[model].spec.outputs)
