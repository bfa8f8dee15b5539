"""Networks of a bundle on a device; halves the batch when memory runs out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from foldwise.bundle.inputs import CarefulItems
from foldwise.bundle.spec import BundleSpec
from foldwise.bundle.time_limit import Active
from foldwise.data.batches import unpack
from foldwise.data.decoding import FileNote
from foldwise.data.table import Table
from foldwise.inference.predictor import Predictor
from foldwise.inference.reading import InputSpec, ReadBatch, load_batches
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model, with_frames
from foldwise.models.network import Batch
from foldwise.tasks.views import View


class Engine:
    """All networks of a bundle; each image is read once for all of them.

    Attributes:
        active: views, snapshots and folds still in use.
        batch_size: images (all views counted) or tiles per pass; halved for good whenever memory runs out.
        notes: for the user.
    """

    def __init__(self, bundle: Path, spec: BundleSpec, device: str, batch_size: int, precision: str) -> None:
        self.spec, self.active, self.device = spec, Active(spec), torch.device(device)
        self.model_index: dict[tuple[int, int, int], int] = {}  # by run, fold and snapshot, within the run
        self.predictors: list[Predictor] = []  # of each run, since their outputs may differ
        for number, run in enumerate(spec.runs):
            frames = TTA.from_names(run.views, run.mean).frames
            loaded = [with_frames(load_model(bundle / model.folder), frames) for model in run.models]
            self.model_index |= {(number, each.fold, each.snapshot): n for n, each in enumerate(run.models)}
            self.predictors.append(Predictor(loaded, TTA(), device, batch_size, precision=precision, tiles=spec.tiles))
        self.models = [model for predictor in self.predictors for model in predictor.models]
        self.batch_size = max(1, batch_size // max(len(run.views) for run in spec.runs))
        self.notes: list[str] = []
        self.file_notes: list[FileNote] = []

    def batches(self, table: Table, items: Sequence[int], workers: int) -> DataLoader[Any]:
        """Make a loader of `ReadBatch`es."""
        inputs = [each for predictor in self.predictors for each in predictor.inputs]
        models = dict(zip(inputs, self.models, strict=True))
        dataset = CarefulItems(table, models, TTA(), items, self.spec.tiles)
        return load_batches(dataset, self.batch_size, workers, self.device)

    def predict(self, batch: ReadBatch) -> Iterator[tuple[int, np.ndarray | None]]:
        """Yield (index, predictions) of each image of a batch.

        Predictions are (A, columns) of the A active members, or maps (A, C, H, W) at the stored size; None for an image
        that does not fit into memory alone.
        """
        self.file_notes += batch.notes
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
            # Not inside the except clause, where the exception keeps the tensors of the failed pass alive.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if size > 1:
                self.batch_size = size // 2
                self.notes.append(f"out of memory with {size} per pass: {self.batch_size} from now on")
            else:
                yield batch.numbers[start], None
                start += 1

    @torch.inference_mode()
    def _values(self, batch: ReadBatch, part: slice) -> Iterator[np.ndarray]:
        device = torch.device("cpu") if self.spec.tiles else self.device  # tiles are moved pass by pass
        batches = {
            inputs: {name: value[part].to(device, non_blocking=True) for name, value in unpack(packed).items()}
            for inputs, packed in batch.batches.items()
        }
        members = [self._member(run, fold, batches) for run, fold in self.active.members]
        for row, size in enumerate(batch.sizes[part]):
            values = [member[[row]] for member in members]  # (1, C, ...): the mean of all views
            yield self.predictors[0].at_size(self.spec.runs[0].output, values, size)[:, 0]

    def _member(self, run: int, fold: int, batches: Mapping[InputSpec, Batch]) -> Tensor:
        """Predict with one fold of a run: (B, columns) or (B, C, H, W), averaged over views and snapshots."""
        output, snapshots, predictor = self.spec.runs[run].output, self.active.snapshots[run], self.predictors[run]
        views, mean = [View.from_name(name) for name in self.active.views[run]], self.spec.runs[run].mean
        total: Any = 0
        for snapshot in snapshots:
            model = self.model_index[run, fold, snapshot]
            fields = batches[predictor.inputs[model]]
            if self.spec.tiles:
                tiled = predictor.predict_tiles(model, fields, self.batch_size)[output]
                total = total + torch.from_numpy(tiled).float()[None] / 255
            else:
                total = total + predictor.predict_views(model, fields, views, mean)[output][:, 0]
        if not self.spec.maps:
            total = pad(total, (0, max(self.spec.widths) - total.shape[1]), value=float("nan"))
        return total / len(snapshots)
