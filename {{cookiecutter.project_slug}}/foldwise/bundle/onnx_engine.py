"""Networks of a bundle as ONNX files, for a host with onnxruntime and without torch. Pictures are read in threads."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime

from foldwise.bundle.inputs import CarefulItems
from foldwise.bundle.passes import Predicted
from foldwise.bundle.spec import BundleSpec
from foldwise.bundle.time_limit import Active
from foldwise.data.decoding import FileNote
from foldwise.data.fields import Field, seen_spatial
from foldwise.data.samples import Sample
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.items import InputSpec, Read, describe_model
from foldwise.inference.tta import TTA
from foldwise.predictions.ensembles.blending import geometric
from foldwise.tasks import Task
from foldwise.tasks.classes import SMALLEST
from foldwise.tasks.views import SYMMETRIES, View

NETWORK = "model.onnx"
AHEAD = 2  # batches that are read while one is predicted
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
Batch = dict[str, np.ndarray]


class ReadBatch(NamedTuple):
    """Items that could be read, and the others; as `foldwise.inference.reading.ReadBatch`."""

    reads: list[Read]
    bad: list[Read]


class Engine:
    """All networks of a bundle; each image is read once for all of them. As `foldwise.bundle.engine.Engine`."""

    gpu_memory_mb = None

    def __init__(self, bundle: Path, spec: BundleSpec, device: str, batch_size: int, precision: str) -> None:
        known = onnxruntime.get_available_providers()
        self.device = device if device != "auto" else "cuda" if PROVIDERS["cuda"][0] in known else "cpu"
        if self.device not in PROVIDERS or PROVIDERS[self.device][0] not in known:
            raise Refusal(f"--device {device} cannot be used with the onnxruntime of this machine: try --device cpu")
        if precision != "32":
            raise Refusal(f"--precision {precision} is for bundles of torch: leave it out")
        self.spec, self.active = spec, Active(spec)
        self.model_index = {
            (number, each.fold, each.snapshot): bundle / each.folder
            for number, run in enumerate(spec.runs)
            for each in run.models
        }
        self.sessions, self.described = {}, {}
        for key, folder in self.model_index.items():
            path, providers = str(folder / NETWORK), PROVIDERS[self.device]
            self.sessions[key] = onnxruntime.InferenceSession(path, providers=providers)
            self.described[key] = describe_model(folder)
        self.models = list(self.described.values())
        self.inputs = {key: InputSpec.of(model) for key, model in self.described.items()}
        self.fields = {
            self.inputs[key]: {name: one for name, one in each.samples.fields.items() if not one.train_only}
            for key, each in self.described.items()
        }
        self.batch_size = max(1, batch_size // max(len(run.views) for run in spec.runs))
        self.notes: list[str] = []
        self.file_notes: list[FileNote] = []

    def close(self) -> None:
        self.sessions.clear()

    def batches(self, table: Table, items: Sequence[int], workers: int) -> Iterator[ReadBatch]:
        """Read batches in threads, in order."""
        models = {self.inputs[key]: model for key, model in self.described.items()}
        dataset = CarefulItems(table, models, TTA(), items)
        waiting: deque[list[Future[Read]]] = deque()
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(items) + AHEAD * self.batch_size, self.batch_size):
                numbers = range(start, min(start + self.batch_size, len(items)))
                waiting.append([pool.submit(dataset.__getitem__, number) for number in numbers])
                if len(waiting) > AHEAD:
                    reads = [future.result() for future in waiting.popleft()]
                    self.file_notes += [note for read in reads for note in read.notes]
                    yield ReadBatch(
                        [read for read in reads if not read.problem], [read for read in reads if read.problem]
                    )

    def predict(self, batch: ReadBatch) -> Iterator[tuple[int, Predicted]]:
        """Yield (index, predictions) of each image of a batch."""
        if not batch.reads:
            return
        batches = {
            inputs: collate([read.samples[number] for read in batch.reads], fields)
            for number, (inputs, fields) in enumerate(self.fields.items())
        }
        head, members, presences = self.spec.presence, [], []
        for run, fold in self.active.members:
            predicted = self._member(run, fold, batches)
            values = predicted[self.spec.runs[run].output]
            if not self.spec.maps:
                gap = max(self.spec.widths) - values.shape[1]
                values = np.pad(values, ((0, 0), (0, gap)), constant_values=np.nan)
            members.append(values)
            if head is not None and head.run == run:
                presences.append(predicted[head.output])
        for row, read in enumerate(batch.reads):
            of_members = [member[row] for member in members]
            if self.spec.maps:
                of_members = [resize_maps(maps, read.size) for maps in of_members]
            present = np.mean([of_run[row] for of_run in presences], axis=0) if presences else None
            yield read.number, Predicted(np.stack(of_members), present)

    def _member(self, run: int, fold: int, batches: Mapping[InputSpec, Batch]) -> dict[str, np.ndarray]:
        """Predict with one fold of a run: by output, averaged over views and snapshots."""
        snapshots, views = self.active.snapshots[run], self.active.views[run]
        total: dict[str, Any] = {}
        for snapshot in snapshots:
            key = run, fold, snapshot
            session, spec, batch = self.sessions[key], self.described[key].spec, batches[self.inputs[key]]
            spatial = seen_spatial(self.fields[self.inputs[key]])
            found: dict[str, list[np.ndarray]] = {output.name: [] for output in spec.outputs}
            for name in views:
                transposes, flips = SYMMETRIES[View.from_name(name).symmetry]
                feeds = {each.name: as_input(batch[each.name], each.type) for each in session.get_inputs()}
                for field in spatial:
                    turned = feeds[field].swapaxes(-1, -2) if transposes else feeds[field]
                    feeds[field] = np.ascontiguousarray(np.flip(turned, flips))
                for output, values in zip(spec.outputs, session.run(None, feeds), strict=True):
                    if output.meaning.kind == "maps":
                        values = np.flip(values, flips)
                        values = values.swapaxes(-1, -2) if transposes else values
                    found[output.name].append(values)
            for output in spec.outputs:
                values = average(output.meaning, np.stack(found[output.name]), self.spec.runs[run].mean)
                total[output.name] = total.get(output.name, 0) + values
        return {name: values / len(snapshots) for name, values in total.items()}


def as_input(values: np.ndarray, kind: str) -> np.ndarray:
    """Convert images between uint8 and float32 in [0, 1], if other pictures than in training need it."""
    if kind == "tensor(float)" and values.dtype == np.uint8:
        return values / np.float32(255)
    if kind == "tensor(uint8)" and values.dtype == np.float32:
        return np.rint(values * 255).astype(np.uint8)
    return values


def average(task: Task, values: np.ndarray, mean: str) -> np.ndarray:
    """Average values (V, B, C, ...) over views, as `Task.average`."""
    if len(values) == 1:
        return values[0]
    if mean == "geometric" and mean in task.means:
        weights = np.full(len(values), 1 / len(values))
        return geometric(values, weights, task.exclusive, axis=1, edge=SMALLEST).astype(np.float32)
    return np.median(values, axis=0) if mean == "median" and mean in task.means else values.mean(axis=0)


def resize_maps(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Interpolate maps (C, h, w) to (C, height, width), as `Predictor.at_size`."""
    return np.stack([cv2.resize(each, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) for each in maps]).clip(0, 1)


def collate(samples: Sequence[Sample], fields: Mapping[str, Field]) -> Batch:
    """Stack samples, pad ragged fields and mark what is real; as `foldwise.data.batches.collate`."""
    batch: Batch = {}
    for name, field in fields.items():
        values = [np.asarray(sample[name]) for sample in samples]
        if field.ragged:
            longest = max(map(len, values))
            batch[f"{name}_valid"] = np.stack([np.arange(longest) < len(value) for value in values])
            values = [np.pad(value, [(0, longest - len(value)), *[(0, 0)] * (value.ndim - 1)]) for value in values]
        if field.kind == "image" and len({value.dtype for value in values}) > 1:  # 8-bit and float images
            values = [value / np.float32(255) if value.dtype == np.uint8 else value for value in values]
        batch[name] = np.stack(values)
    return batch
