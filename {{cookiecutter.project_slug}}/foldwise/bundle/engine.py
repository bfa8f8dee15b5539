"""The networks of a bundle on a device, which predict a batch in smaller passes where memory is short."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from foldwise.bundle.inputs import CarefulItems
from foldwise.bundle.spec import BundleSpec
from foldwise.bundle.time_limit import Active
from foldwise.data.batches import unpack
from foldwise.data.table import Table
from foldwise.inference.predictor import Predictor
from foldwise.inference.reading import InputSpec, ReadBatch, load_batches
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.models.network import Batch
from foldwise.tasks.views import View


class Engine:
    """All networks of a bundle; each image is read once for all of them.

    Attributes:
        active: what still predicts.
        batch_size: images in a pass, each in all views; of tiles, tiles. Halved for good whenever memory runs out.
        notes: what the user should know.
    """

    def __init__(self, bundle: Path, spec: BundleSpec, device: str, batch_size: int, precision: str) -> None:
        self.spec, self.active, self.device = spec, Active(spec), torch.device(device)
        models = {
            (number, model.fold, model.snapshot): load_model(bundle / model.folder)
            for number, run in enumerate(spec.runs)
            for model in run.models
        }
        self.places = {key: place for place, key in enumerate(models)}
        every = list(models.values())
        self.predictor = Predictor(every, TTA(), device, batch_size, precision=precision, tiles=spec.tiles)
        self.batch_size = max(1, batch_size // max(len(run.views) for run in spec.runs))
        self.notes: list[str] = []

    def batches(self, table: Table, items: Sequence[int], workers: int) -> DataLoader[Any]:
        """`ReadBatch`es of items of a table, by their numbers."""
        models = dict(zip(self.predictor.inputs, self.predictor.models, strict=True))
        read = CarefulItems(table, models, TTA(), items, self.spec.tiles)
        return load_batches(read, self.batch_size, workers, self.device)

    def predict(self, batch: ReadBatch) -> Iterator[tuple[int, np.ndarray | None]]:
        """(number, predictions of the active members) of each image of a batch.

        Predictions are (A, C), or maps (A, C, H, W) at the stored size, of A members; None for an image that does not
        fit into memory by itself.
        """
        start = 0
        while start < len(batch.numbers):
            part = slice(start, start + self.batch_size)
            size = self.batch_size if self.spec.tiles else len(batch.numbers[part])
            try:
                for values in self._values(batch, part):
                    yield batch.numbers[start], values
                    start += 1
                continue
            except torch.OutOfMemoryError:
                pass
            # outside of the except clause, which would hold on to the tensors of the failed pass
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if size > 1:
                self.batch_size = size // 2
                self.notes.append(f"out of memory with {size} in a pass: {self.batch_size} from here on")
            else:
                yield batch.numbers[start], None
                start += 1

    @torch.inference_mode()
    def _values(self, batch: ReadBatch, part: slice) -> Iterator[np.ndarray]:
        device = torch.device("cpu") if self.spec.tiles else self.device  # tiles go there pass by pass
        batches = {
            inputs: {name: value[part].to(device, non_blocking=True) for name, value in unpack(packed).items()}
            for inputs, packed in batch.batches.items()
        }
        members = [self._member(run, fold, batches) for run, fold in self.active.members]
        for row, size in enumerate(batch.sizes[part]):
            values = [member[[row]] for member in members]  # one view, the mean of all
            yield self.predictor.at_size(self.spec.runs[0].output, values, size)[:, 0]

    def _member(self, run: int, fold: int, batches: Mapping[InputSpec, Batch]) -> Tensor:
        """(B, C), or maps (B, C, H, W), of a run's model of a fold: the mean over its snapshots."""
        output, snapshots = self.spec.runs[run].output, self.active.snapshots[run]
        views, mean = [View.from_name(name) for name in self.active.views[run]], self.spec.runs[run].mean
        total: Any = 0
        for snapshot in snapshots:
            place = self.places[run, fold, snapshot]
            fields = batches[self.predictor.inputs[place]]
            if self.spec.tiles:
                tiled = self.predictor.predict_tiles(place, fields, self.batch_size)[output]
                total = total + torch.from_numpy(tiled).float()[None] / 255
            else:
                total = total + self.predictor.predict_views(place, fields, views, mean)[output][:, 0]
        return total / len(snapshots)
