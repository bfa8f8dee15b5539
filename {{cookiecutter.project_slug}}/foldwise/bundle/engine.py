"""The networks of a bundle on a device: what they say of a batch, in smaller pieces where memory is short."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from foldwise.bundle.dropping import Active, Network
from foldwise.bundle.images import CarefulItems
from foldwise.bundle.recipe import Recipe
from foldwise.data.batches import unpack
from foldwise.data.table import Table
from foldwise.inference.predictor import Predictor
from foldwise.inference.reading import InputSpec, ReadBatch, load_batches
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.models.network import Batch
from foldwise.tasks import find_task


class Engine:
    """All networks of a bundle; each image is read once for all of them.

    Args:
        batch_size: images in one forward pass, all views counted; it is halved for good whenever memory runs out.

    Attributes:
        active: what still predicts.
        most: images in a pass now.
        notes: what the user should know, each said once.
    """

    def __init__(self, bundle: Path, recipe: Recipe, device: str, batch_size: int, precision: str) -> None:
        self.recipe, self.active, self.device = recipe, Active(recipe), torch.device(device)
        self.predictors, self.nets = [], {}  # nets: the place of each among its run's models
        for number, run in enumerate(recipe.runs):
            models = [load_model(bundle / model.folder) for model in run.models]
            tta = TTA.from_names(run.views, run.mean)
            predictor = Predictor(models, tta, device, batch_size, precision=precision, tiles=recipe.tiles)
            self.predictors.append(predictor)
            for place, model in enumerate(run.models):
                self.nets[number, model.fold, model.snapshot] = place
        self.inputs = {
            inputs: model
            for predictor in self.predictors
            for inputs, model in zip(predictor.inputs, predictor.models, strict=True)
        }
        self.most = min(predictor.batch_size for predictor in self.predictors)
        self.notes: list[str] = []
        self.reset_clock()

    def batches(self, table: Table, items: Sequence[int], workers: int) -> DataLoader[Any]:
        """`ReadBatch`es of items of a table, by their numbers."""
        read = CarefulItems(table, self.inputs, TTA(), items, self.recipe.tiles)
        return load_batches(read, self.most, workers, self.device)

    def reset_clock(self) -> None:
        """Measure the networks anew."""
        self._seconds: defaultdict[Network, float] = defaultdict(float)
        self._images = 0

    @property
    def seconds(self) -> dict[Network, float]:
        """What an image of each active network takes, all its views."""
        return {network: self._seconds[network] / max(self._images, 1) for network in self.active.networks}

    def predict(self, batch: ReadBatch, finish: Callable[[np.ndarray], Any]) -> Iterator[tuple[int, Any]]:
        """(number, `finish` of what the active members say) of each image of a batch.

        `finish` is given (A, C), or maps (A, C, H, W) at the stored size, of A members. The outcome is None for an
        image that does not fit into memory by itself.
        """
        start = 0
        while start < len(batch.numbers):
            part = slice(start, start + self.most)
            size = len(batch.numbers[part])
            try:
                results = [finish(values) for values in self._values(batch, part)]
            except torch.OutOfMemoryError:
                results = []
            if not results:  # outside of the except clause, which would hold on to the tensors of the failed pass
                if self._halve(size):
                    continue
                results = [None]
            yield from zip(batch.numbers[part], results, strict=True)
            start += size

    def _halve(self, size: int) -> bool:
        """Take smaller passes from here on; whether that was possible."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.recipe.tiles:  # one picture, whose tiles are passed in batches
            size = self.predictors[0].batch_size
        smaller = size // 2
        if not smaller:
            return False
        self.notes.append(f"out of memory with {size} in a pass: {smaller} from here on")
        self.most = smaller
        if self.recipe.tiles:
            self.most = 1
            for predictor in self.predictors:
                predictor.batch_size = smaller
        return True

    @torch.inference_mode()
    def _values(self, batch: ReadBatch, part: slice) -> Iterator[np.ndarray]:
        batches = {
            inputs: {name: value[part] for name, value in unpack(packed).items()}
            for inputs, packed in batch.batches.items()
        }
        if not self.recipe.tiles:  # which go to the device one by one
            batches = {
                inputs: {name: value.to(self.device, non_blocking=True) for name, value in each.items()}
                for inputs, each in batches.items()
            }
        members = [self._member(run, fold, batches) for run, fold in self.active.members]
        self._images += len(batch.numbers[part])
        if find_task(self.recipe.task).kind != "maps":
            yield from torch.stack(members, 1).cpu().numpy()
            return
        for row, size in enumerate(batch.sizes[part]):
            maps = [member[[row]] for member in members]
            if not self.recipe.tiles:  # which are at the stored size
                maps = [interpolate(each, size, mode="bilinear", align_corners=False).clamp(0, 1) for each in maps]
            yield torch.cat(maps).cpu().numpy()

    def _member(self, run: int, fold: int, batches: Mapping[InputSpec, Batch]) -> Tensor:
        """(B, C), or maps (B, C, H, W), of a run's model of a fold: the mean over its snapshots."""
        predictor, chosen = self.predictors[run], self.recipe.runs[run]
        views = [predictor.tta.views[place] for place in self.active.views[run]]
        total = torch.zeros(())
        for snapshot in self.active.snapshots[run]:
            begun = time.monotonic()
            place = self.nets[run, fold, snapshot]
            batch = batches[predictor.inputs[place]]
            if self.recipe.tiles:
                said = torch.from_numpy(predictor.predict_tiles(place, batch)[chosen.output]).float()[None] / 255
            else:
                said = predictor.predict_views(place, batch, views)[chosen.output][:, 0]
            total = total.to(said.device) + said
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self._seconds[run, fold, snapshot] += time.monotonic() - begun
        return total / len(self.active.snapshots[run])
