"""Networks of a bundle on a device; halves the batch when memory runs out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from foldwise.bundle.inputs import CarefulItems
from foldwise.bundle.passes import Predicted
from foldwise.bundle.spec import BundleSpec
from foldwise.bundle.time_limit import Active
from foldwise.data.batches import unpack
from foldwise.data.decoding import FileNote
from foldwise.data.table import Table
from foldwise.inference.device import choose_device
from foldwise.inference.items import InputSpec
from foldwise.inference.predictor import Predictor
from foldwise.inference.reading import ReadBatch, load_batches
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
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
        device = choose_device(device)
        self.spec, self.active, self.device = spec, Active(spec), torch.device(device)
        self.model_index: dict[tuple[int, int, int], int] = {}  # by run, fold and snapshot, within the run
        self.predictors: list[Predictor] = []  # of each run, since their outputs may differ
        for number, run in enumerate(spec.runs):
            loaded, tta = (
                [load_model(bundle / model.folder) for model in run.models],
                TTA.from_names(run.views, run.mean),
            )
            self.model_index |= {(number, each.fold, each.snapshot): n for n, each in enumerate(run.models)}
            self.predictors.append(Predictor(loaded, tta, device, batch_size, precision=precision, tiles=spec.tiles))
        self.models = [model for predictor in self.predictors for model in predictor.models]
        self.batch_size = max(1, batch_size // max(len(run.views) for run in spec.runs))
        self.notes: list[str] = []
        self.file_notes: list[FileNote] = []

    @property
    def gpu_memory_mb(self) -> int | None:
        return round(torch.cuda.max_memory_allocated() / 1e6) if self.device.type == "cuda" else None

    def close(self) -> None:
        """Free the GPU for another engine."""
        self.predictors.clear()
        self.models.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def batches(self, table: Table, items: Sequence[int], workers: int) -> DataLoader[Any]:
        """Make a loader of `ReadBatch`es."""
        models = {inputs: model for predictor in self.predictors for inputs, model in predictor.read.items()}
        dataset = CarefulItems(table, models, TTA(), items, self.spec.tiles)
        return load_batches(dataset, self.batch_size, workers, self.device)

    def predict(self, batch: ReadBatch) -> Iterator[tuple[int, Predicted | None]]:
        """Yield (index, predictions) of each image of a batch; None for one that does not fit into memory alone."""
        self.file_notes += batch.notes
        start = 0
        while start < len(batch.numbers):
            part = slice(start, start + self.batch_size)
            size = self.batch_size if self.spec.tiles else len(batch.numbers[part])
            try:
                for predicted in self._predict(batch, part):
                    yield batch.numbers[start], predicted
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
    def _predict(self, batch: ReadBatch, part: slice) -> Iterator[Predicted]:
        device = torch.device("cpu") if self.spec.tiles else self.device  # tiles are moved pass by pass
        batches = {
            inputs: {name: value[part].to(device, non_blocking=True) for name, value in unpack(packed).items()}
            for inputs, packed in batch.batches.items()
        }
        head = self.spec.presence
        members, presences = [], []
        for run, fold in self.active.members:
            predicted = self._member(run, fold, batches)
            values = predicted[self.spec.runs[run].output]
            if not self.spec.maps:
                values = pad(values, (0, max(self.spec.widths) - values.shape[1]), value=float("nan"))
            members.append(values)
            if head is not None and head.run == run:
                presences.append(predicted[head.output])
        present = torch.stack(presences).mean(0).cpu().numpy() if presences else None
        for row, size in enumerate(batch.sizes[part]):
            of_members = [member[[row]] for member in members]  # (1, C, ...): the mean of all views
            of_image = None if present is None else present[row]
            yield Predicted(self.predictors[0].at_size(self.spec.runs[0].output, of_members, size)[:, 0], of_image)

    def _member(self, run: int, fold: int, batches: Mapping[InputSpec, Batch]) -> dict[str, Any]:
        """Predict with one fold of a run: (B, columns) or (B, C, H, W) by output, averaged over views and snapshots."""
        snapshots, predictor = self.active.snapshots[run], self.predictors[run]
        views, mean = [View.from_name(name) for name in self.active.views[run]], self.spec.runs[run].mean
        total: dict[str, Any] = {}
        for snapshot in snapshots:
            model = self.model_index[run, fold, snapshot]
            if self.spec.tiles:
                tiles = predictor.predict_tiles(model, batches, self.batch_size)
                found = {name: torch.from_numpy(tiled).float()[None] / 255 for name, tiled in tiles.items()}
            else:
                of_views = predictor.predict_views(model, batches, views, mean)
                found = {name: values[:, 0] for name, values in of_views.items()}
            total = {name: total.get(name, 0) + values for name, values in found.items()}
        return {name: values / len(snapshots) for name, values in total.items()}
