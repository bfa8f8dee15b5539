"""Comparison of a bundle's predictions with predict.py's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from foldwise.bundle.inferring import SHARDS
from foldwise.bundle.inputs import Inputs
from foldwise.bundle.shards import read_rows
from foldwise.bundle.spec import BundledRun, BundleSpec
from foldwise.inference.predicting import Choices, beside, predict_runs
from foldwise.inference.tta import TTA
from foldwise.predictions.decisions.submission import difference, write_masks, write_table
from foldwise.predictions.schema import MEMBER
from foldwise.predictions.store import Predictions, iter_maps, read_predictions
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
    image_column = str(spec.columns["image"])
    first = {image.path: image for image in reversed(inputs.images) if image.id not in bad}
    images = sorted(first.values(), key=lambda image: image.number)[:COMPARED]
    ids, numbers = [image.id for image in images], [image.number for image in images]
    good = test.iloc[sorted({row for number in numbers for row in inputs.test.items[number].rows})]
    good = good.assign(**{image_column: [name.partition("/")[2] for name in good[image_column]]})
    good.to_csv(work / "compared.csv", index=False)
    folders = [_predict(spec, run, work, number) for number, run in enumerate(spec.runs)]
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


def _predict(spec: BundleSpec, run: BundledRun, work: Path, number: int) -> Path:
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
    path = work / f"tta{number}.yaml"
    path.write_text(yaml.safe_dump(tta), encoding="utf-8")
    choices = Choices(tta=path, tiles=spec.tiles)
    table, out = work / "compared.csv", work / f"compared{number}"
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
