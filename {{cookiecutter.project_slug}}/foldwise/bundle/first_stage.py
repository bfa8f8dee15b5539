"""The first stage of a bundle: predicts masks and finds boxes in them, as tools/crop.py does, for the second stage.

It writes `boxes.csv`, the table of the second stage. A picture in which nothing is found, or that was not reached in
time, has no box there, and is read whole.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.bundle.inputs import Inputs, read_inputs
from foldwise.bundle.passes import Predicted, describe_request, open_engine, predict_images
from foldwise.bundle.shards import Shards
from foldwise.bundle.spec import BundleSpec, read_bundle
from foldwise.data.boxes import BOX, SCORE, SCORE_MAP
from foldwise.data.problems import some
from foldwise.files import check_new, write_csv
from foldwise.inference.items import describe_model
from foldwise.inference.spec import read_spec
from foldwise.predictions.decisions.sample import read_sample
from foldwise.predictions.finder import Finder, write_map
from foldwise.tasks import find_task

BOXES, SHARDS, MAPS = "boxes.csv", "boxes-shards", "boxes-maps"


@dataclass
class FirstStage:
    """The first stage of one inference.

    Attributes:
        inputs: the images of the test.
        columns: of the second stage.
        scale: the stored value of the images that stands for 1.0.
        out: folder of the table, shards and maps.
        report: of inference.json.
    """

    bundle: Path
    first: BundleSpec
    columns: Mapping[str, str | None]
    inputs: Inputs
    scale: float
    out: Path
    report: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find(
        self, batch_size: int, workers: int, device: str, precision: str, time_limit: float | None, begun: float
    ) -> None:
        """Predict the images, and write the table; call again to resume. At least one pass is left for what follows."""
        print("first stage: finding boxes", flush=True)
        engine = open_engine(self.bundle, self.first, device, batch_size, precision)
        finder: Finder = self.first.decision
        exclusive = find_task(self.first.task).exclusive
        maps = self.out / MAPS
        maps.mkdir(exist_ok=True)

        def answer(number: int, predicted: Predicted) -> bytes:
            mean = as_stored(predicted.values).mean(axis=0)
            parts, score = finder.score(mean, self.first.classes, exclusive)
            name = write_map(maps, number, score, self.scale) if finder.map else ""
            return json.dumps([finder.describe(finder.find(score), parts), name]).encode()

        request = describe_request(self.bundle, self.inputs, precision)
        shards = Shards(self.out / SHARDS, self.first, request)
        pace, dropped, _ = predict_images(engine, self.inputs, shards, workers, answer, time_limit, begun, later=1)
        stored = {image.id: shards.mask(number) for number, image in enumerate(self.inputs.images)}
        answers = {id: json.loads(text) for id, text in stored.items() if text is not None}
        found = {id: rows for id, (rows, _) in answers.items()}
        self.write(found, {id: f"{MAPS}/{name}" for id, (_, name) in answers.items() if name})
        self.notes += engine.notes
        without = [id for id in stored if not found.get(id)]
        if without:
            self.notes.append(f"{len(without)} of {len(stored)} images have no box and are read whole: {some(without)}")
            print(f"note: {self.notes[-1]}")
        self.report |= {
            "images": len(stored),
            "without_box": len(without),
            "seconds": round(pace.now - pace.start, 3),
            "seconds_per_image": pace.seconds,
            "dropped": dropped,
        }
        engine.close()

    def write(self, found: Mapping[str, Any], maps: Mapping[str, str]) -> None:
        """Write the table of the second stage, with the columns that it was trained on."""
        frame, columns = self.inputs.test.source.frame, self.columns
        named = {name: frame[key] for key, name in columns.items() if name is not None and key in frame}
        needless = [*(key for key in columns if key not in named), *BOX, SCORE, SCORE_MAP]
        raw = frame.assign(**named).drop(columns=needless, errors="ignore")
        finder: Finder = self.first.decision
        cells = {id: maps.get(id, "") for id in frame["id"]} if finder.map else {}
        boxes = finder.table(raw, frame["id"], frame["image"], found, cells, every=True)
        write_csv(self.out / BOXES, boxes)


def open_first_stage(
    bundle: Path, test: Path, images: Path | None, sample: Path | None, out: Path
) -> FirstStage | None:
    """Read the test for the first stage, and write its table as if nothing were found; None if there is none."""
    spec = read_bundle(bundle)
    if spec.first is None:
        return None
    check_new(out / f"submission{spec.layout.suffix}")
    names = set() if sample is None else set(read_sample(sample).frame.to_numpy().ravel())
    folder = bundle / spec.first.runs[0].models[0].folder
    model = read_spec(folder)
    inputs = read_inputs(test, images, spec.first.columns, names, describe_model(folder).samples, model.exif)
    scale = next(iter(model.scales.values())) or 255.0
    stage = FirstStage(bundle, spec.first, spec.columns, inputs, scale, out)
    stage.write({}, {})
    return stage


def as_stored(maps: np.ndarray) -> np.ndarray:
    """Round probabilities to the 8 bits of a prediction folder, in which tools/crop.py finds boxes."""
    return np.rint(maps.clip(0, 1) * 255) / np.float32(255)
