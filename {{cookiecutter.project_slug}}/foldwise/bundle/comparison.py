"""Comparison of a bundle's predictions with predict.py's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from foldwise.bundle.first_stage import SHARDS as FIRST
from foldwise.bundle.inferring import SHARDS
from foldwise.bundle.inputs import Inputs
from foldwise.bundle.shards import REQUEST, Shards, read_rows
from foldwise.bundle.spec import BundledRun, BundleSpec
from foldwise.files import read_json
from foldwise.inference.predicting import Choices, beside, predict_runs
from foldwise.inference.tta import TTA
from foldwise.predictions.decisions.submission import difference, write_masks, write_table
from foldwise.predictions.schema import MEMBER
from foldwise.predictions.store import Predictions, iter_average_maps, iter_maps, read_predictions
from foldwise.tasks import find_task
from foldwise.tasks.views import View

COMPARED = 200  # images at most, since predicting them again takes time


class Comparison(NamedTuple):
    """Number of images compared, largest probability difference (None for masks), and mean difference of the answers,
    0 to 1 (None if answers depend on more than these images)."""

    images: int
    probability: float | None
    answers: float | None


def compare_with_runs(
    spec: BundleSpec, test: pd.DataFrame, inputs: Inputs, bad: set[str], out: Path, work: Path
) -> Comparison:
    """Predict the first images of a rehearsal again from the run folders, and compare.

    Args:
        test: table of the rehearsal; its image paths start with the link to the data root.
        bad: ids that got the fallback.
        out: folder that infer.py wrote, with shards.
        work: scratch folder.
    """
    first = {image.path: image for image in reversed(inputs.images) if image.id not in bad}
    images = sorted(first.values(), key=lambda image: image.number)[:COMPARED]
    ids, numbers = [image.id for image in images], [image.number for image in images]
    table = _write_table(spec, test, inputs, numbers, out)
    folders = [_predict(spec, run, table, work / f"compared{number}") for number, run in enumerate(spec.runs)]
    predictions = [_read(run, folder, run.output) for run, folder in zip(spec.runs, folders, strict=True)]
    layout = spec.layout
    submission, expected = out / f"submission{layout.suffix}", work / f"expected{layout.suffix}"
    if spec.maps:
        present = None
        if spec.presence is not None:
            number, head = spec.presence.run, spec.presence.output
            frame = _read(spec.runs[number], folders[number], head).frame
            present = frame.groupby("id")[list(spec.presence.columns)].mean()
        write_masks(expected, layout, _masks(spec, predictions, ids, present), None)
        return Comparison(len(ids), None, difference(expected, submission, layout.name, common=True))
    frames = [each.frame.drop(columns=MEMBER[1:]).groupby(["fold", "id"]).mean() for each in predictions]
    values = np.full((len(ids), len(spec.members), max(spec.widths)), np.nan, np.float32)
    for member, ((run, fold), width) in enumerate(zip(spec.members, spec.widths, strict=True)):
        values[:, member, :width] = frames[run].loc[fold].loc[ids].to_numpy()
    difference_of = np.abs(read_rows(out / SHARDS, spec, len(inputs.images))[numbers] - values)
    probability = float(difference_of[:, np.arange(values.shape[2]) < np.array(spec.widths)[:, None]].max())
    if spec.columns["unit"] is not None or spec.blend == "rank" or (spec.stacks and not spec.stacks.of_one_item):
        return Comparison(len(ids), probability, None)
    extra = spec.read_extra(inputs.test.table.frame.iloc[numbers], inputs.test.table.path)
    write_table(expected, layout.table(ids, spec.decide_rows(values, ids, extra)), None)
    return Comparison(len(ids), probability, difference(expected, submission, layout.name, common=True))


def compare_boxes(first: BundleSpec, test: pd.DataFrame, inputs: Inputs, out: Path, work: Path) -> float:
    """Share of the first images whose boxes are not those in the masks that predict.py makes."""
    shards = Shards(out / FIRST, first, read_json(out / FIRST / REQUEST))
    good = [number for number, problem in sorted(shards.done().items()) if not problem][:COMPARED]
    images, finder = [inputs.images[number] for number in good], first.decision
    table = _write_table(first, test, inputs, [image.number for image in images], out)
    masks = _read(first.runs[0], _predict(first, first.runs[0], table, work / "compared-masks"), "")
    different = 0
    for number, (_, probability) in zip(good, iter_average_maps(masks, [image.id for image in images]), strict=True):
        _, score = finder.score(probability, first.classes, find_task(first.task).exclusive)
        rows, _ = json.loads(shards.mask(number) or b"")
        different += [row["box"] for row in rows] != [list(each.box) for each in finder.find(score)]
    return different / max(1, len(good))


def _write_table(spec: BundleSpec, test: pd.DataFrame, inputs: Inputs, items: Sequence[int], out: Path) -> Path:
    """The rows of items with paths under the data root, beside the maps that they may name."""
    column = str(spec.columns["image"])
    rows = test.iloc[sorted({row for item in items for row in inputs.test.items[item].rows})]
    rows = rows.assign(**{column: [name.partition("/")[2] for name in rows[column]]})
    rows.to_csv(out / "compared.csv", index=False)
    return out / "compared.csv"


def _predict(spec: BundleSpec, run: BundledRun, table: Path, out: Path) -> Path:
    """Predict the compared images as predict.py does; the folder of the main output."""
    views = [View.from_name(name) for name in run.views]
    tta = {
        "views": list(dict.fromkeys(view.symmetry for view in views)),
        "mean": run.mean,
        "scales": list(dict.fromkeys(view.scale for view in views if view.crop is None)),
        "crops": list(dict.fromkeys(view.crop for view in views if view.crop is not None)),
        "margins": [margin for margin in TTA.from_names(run.views, run.mean).margins if margin is not None],
        "frames": TTA.from_names(run.views, run.mean).frames,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tta), encoding="utf-8")
    choices = Choices(tta=path, tiles=spec.tiles)
    return predict_runs([Path(run.source)], choices, table, out, Console(quiet=True))[0]


def _read(run: BundledRun, folder: Path, output: str) -> Predictions:
    """Read what `_predict` wrote for an output; keep the bundled snapshots."""
    predictions = read_predictions(beside(folder, output))
    bundled = {(model.fold, Path(model.folder).name) for model in run.models}
    keys = zip(predictions.frame["fold"], predictions.frame["snapshot"], strict=True)
    return replace(predictions, frame=predictions.frame[[key in bundled for key in keys]])


def _masks(
    spec: BundleSpec, predictions: list[Predictions], ids: list[str], present: pd.DataFrame | None
) -> Iterator[tuple[str, bytes]]:
    """Yield (id, encoded mask)."""
    for id in ids:
        maps: dict[tuple[int, int], list[np.ndarray]] = {member: [] for member in spec.members}
        for number, each in enumerate(predictions):
            for row in iter_maps(each, [id]):
                maps[number, row.fold].append(row.probability)
        means = np.stack([np.mean(snapshots, axis=0) for snapshots in maps.values()])
        of_image = None if present is None else present.loc[id].to_numpy()
        yield id, spec.layout.encode(spec.decide_mask(spec.members, means, of_image))
