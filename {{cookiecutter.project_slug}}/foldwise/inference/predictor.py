"""Predicting items with several models at once, in a plain torch loop: each item is read and decoded once.

Workers read, decode and resize; integers go to the device; one item at a time comes out, in order, so memory does not
grow with the number of items. It is used for the out-of-fold predictions and by predict.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.data.batches import to_device, unpack
from foldwise.data.fields import seen_spatial
from foldwise.data.images import ImageError
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.memory import keep_freed_memory
from foldwise.inference.reading import Items, ReadBatch, Wanted, load_batches
from foldwise.inference.tiles import predict_tiled
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model
from foldwise.models.network import Batch

PRECISIONS = {"32": None, "32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
Values = dict[str, np.ndarray]  # of an item, by the name of the output


class Predictor:
    """Predicts with models that have the same outputs.

    Args:
        models: they may differ in everything else, reading included.
        tta: views and their mean.
        keep_views: give the values of each view, not their mean.
        tiles: maps: predict in tiles of the network's size at the stored resolution, one view. Models whose fit is
            "tiles" always do.
        device: where to compute; the models are moved there.
        batch_size: items in one forward pass, all views counted.
        workers: processes that read; 0 reads in this one. The result does not depend on it.
        precision: "32", "16-mixed" or "bf16-mixed".

    Raises:
        Refusal: models with different outputs, or a precision that is not there.
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
        self.outputs = models[0].spec.outputs
        self.tasks = {output.name: output.meaning for output in self.outputs}
        if any(self._kinds(model) != self._kinds(models[0]) for model in models):
            raise Refusal("the models are not of one task with one number of classes: predict them one by one")
        if precision not in PRECISIONS:
            raise Refusal(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        maps = any(task.kind == "maps" for task in self.tasks.values())
        if tta.draws and maps:
            raise Refusal("random draws cannot be turned back on masks: choose a TTA of flips, scales or crops")
        if keep_views and maps and any(view.crop for view in tta.views):
            raise Refusal("a crop sees a part of the picture only, so its map cannot be kept: choose views or scales")
        fixed = [
            model.spec.network.get("name", "the network")
            for model in models
            if "img_size" in (model.spec.network.get("options") or {})
        ]
        if tta.resamples and fixed:
            raise Refusal(f"{fixed[0]} takes images of one size only: choose a TTA without scales")
        self.device = torch.device(device)
        if precision == "16-mixed" and self.device.type == "cpu":
            raise Refusal("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.models = models
        for model in models:
            model.network.to(self.device).eval()
        trained = {model.spec.fit == "tiles" for model in models}
        if len(trained) > 1 and not tiles:
            raise Refusal(
                "some models are trained on crops of the stored resolution, others on whole pictures: predict them in "
                "two commands"
            )
        self.tiles = tiles or True in trained
        if self.tiles and tta.names != ["identity"]:
            raise Refusal("tiles are predicted in one view: choose --tta none")
        if self.tiles and any(task.kind != "maps" for task in self.tasks.values()):
            raise Refusal("tiles are for masks: an output of this run is about the whole picture")
        self.tta = tta
        self.views = tta.names if keep_views else [tta.name]
        self.batch_size = max(1, batch_size // len(tta.names))
        self.workers = workers
        self.dtype = PRECISIONS[precision]
        wanted = [Wanted.of(model) for model in models]
        self.wanted = dict(zip(wanted, models, strict=True))
        self.inputs = [list(self.wanted).index(how) for how in wanted]
        self.spatial = [seen_spatial(model.samples.fields) for model in models]

    @staticmethod
    def _kinds(model: Model) -> list[tuple[str, str, int]]:
        return [(output.name, output.task, len(output.columns)) for output in model.spec.outputs]

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
        read = Items(table, self.wanted, self.tta, items, self.tiles)
        for batch in load_batches(read, self.batch_size, self.workers, self.device):
            if batch.bad:
                raise ImageError("\n".join(item.problem for item in batch.bad))
            results = self._predict_tiles(batch) if self.tiles else self._predict_batch(batch)
            yield from zip(batch.numbers, results, strict=True)

    @torch.inference_mode()
    def _predict_batch(self, batch: ReadBatch) -> Iterator[Values]:
        moved = [to_device(packed, self.device) for packed in batch.inputs]
        found = [self.predict_views(number, moved[place]) for number, place in enumerate(self.inputs)]
        for row, size in enumerate(batch.sizes):
            yield {
                output.name: self.at_size(output.name, [values[output.name][row] for values in found], size)
                for output in self.outputs
            }

    def at_size(self, name: str, values: list[Tensor], size: Sequence[int]) -> np.ndarray:
        """The values (M, V, C, ...) of an item as they are stored: maps at its own size.

        Args:
            values: (V, C, ...) of each model; maps may differ in size.
        """
        if self.tasks[name].kind == "maps":
            # rounding of the weights can reach above 1
            planes = [interpolate(model, tuple(size), mode="bilinear", align_corners=False) for model in values]
            values = [plane.clamp(0, 1) for plane in planes]
        return torch.stack(values).cpu().numpy()

    def _predict_tiles(self, batch: ReadBatch) -> Iterator[Values]:
        inputs = [unpack(packed) for packed in batch.inputs]
        maps = [self.predict_tiles(number, inputs[place]) for number, place in enumerate(self.inputs)]
        yield {output.name: np.stack([each[output.name] for each in maps])[:, None] for output in self.outputs}

    @torch.inference_mode()
    def predict_views(self, model: int, batch: Batch, tta: TTA | None = None) -> dict[str, Tensor]:
        """The values (B, V, C, ...) of each output of one model, by its number; maps at the network's size.

        Args:
            batch: on the device. With draws, spatial fields are (B, D, ...), ragged ones (B, N, D, ...).
            tta: in place of the predictor's own.
        """
        tta = tta or self.tta
        spatial = self.spatial[model]
        draws = tta.draws or 1
        if tta.draws:
            ragged = [name for name in spatial if f"{name}_valid" in batch]  # (B, N, D, ...)
            batch = batch | {name: batch[name].transpose(1, 2) for name in ragged}
            batch = {
                name: value.flatten(0, 1) if name in spatial else value.repeat_interleave(draws, 0)
                for name, value in batch.items()
            }
        results = tta.predict(partial(self._values, model), batch, spatial, self.tasks)
        found = {}
        for name, of_views in results.items():
            by_draw = [value.unflatten(0, (-1, draws))[:, draw] for draw in range(draws) for value in of_views]
            if len(self.views) > 1:
                found[name] = torch.stack(by_draw, 1)
            else:
                found[name] = self.tasks[name].average(torch.stack(by_draw), tta.mean).unsqueeze(1)
        return found

    @torch.inference_mode()
    def predict_tiles(self, model: int, batch: Batch) -> dict[str, np.ndarray]:
        """The map (C, H, W) uint8 of each output, of one item by tiles."""
        columns = [len(output.columns) for output in self.outputs]

        def values(tiles: Batch) -> Tensor:
            return torch.cat(list(self._values(model, tiles).values()), 1)

        size = self.models[model].spec.image_size
        whole = predict_tiled(batch, self.spatial[model], values, size, sum(columns), self.batch_size)
        parts = np.split(whole, np.cumsum(columns)[:-1])
        return {output.name: part for output, part in zip(self.outputs, parts, strict=True)}

    def _values(self, model: int, batch: Batch) -> dict[str, Tensor]:
        """The activated values of each output."""
        with self._precision():
            outputs = self.models[model].network({name: value.to(self.device) for name, value in batch.items()})
        return activate(outputs, self.models[model].spec.outputs)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


def activate(outputs: Mapping[str, Tensor], wanted: Sequence[Any]) -> dict[str, Tensor]:
    """The values of each output by its name.

    Raises:
        Refusal: the network does not give one of them.
    """
    missing = [output.key for output in wanted if output.key not in outputs]
    if missing:
        raise Refusal(
            f"the network gives {', '.join(outputs)} and not {', '.join(missing)}: `forward` returns a dict with the "
            "key of each output"
        )
    return {output.name: output.meaning.activate(outputs[output.key]) for output in wanted}
