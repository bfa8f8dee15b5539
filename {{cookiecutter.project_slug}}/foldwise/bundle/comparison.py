"""What a bundle said of some images, compared with what predict.py says of them with the runs' own files."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from foldwise.bundle.answers import decide_mask, decide_rows
from foldwise.bundle.inferring import PARTS
from foldwise.bundle.inputs import Inputs
from foldwise.bundle.parts import read_rows
from foldwise.bundle.recipe import BundledRun, Recipe
from foldwise.inference.predicting import Choices, beside, predict_runs
from foldwise.inference.views import View
from foldwise.predictions.decisions.submission import difference, write_masks, write_table
from foldwise.predictions.schema import MEMBER
from foldwise.predictions.store import Predictions, iter_maps, read_predictions

COMPARED = 200  # images: predicting them again with predict.py takes its time


class Comparison(NamedTuple):
    """How many images were compared, the largest difference of a probability (rows), and the mean difference of the
    answers, 0 to 1; None where it says nothing."""

    images: int
    probability: float | None
    answers: float | None


def compare_with_runs(
    recipe: Recipe, test: pd.DataFrame, inputs: Inputs, bad: set[str], root: Path, out: Path, work: Path
) -> Comparison:
    """Predict the first images of a rehearsal again with the runs, by predict.py's own function.

    Args:
        test: the rehearsed table; images begin with the name of the link to `root`. `inputs` is what was read of it.
        bad: ids that got the fallback.
        out: what infer.py wrote, with its parts.
        work: a folder to write into.
    """
    image_column = str(recipe.columns["image"])
    first = {path: number for number, path in reversed(list(enumerate(inputs.paths))) if inputs.ids[number] not in bad}
    numbers = sorted(first.values())[:COMPARED]
    ids = [inputs.ids[number] for number in numbers]
    good = test.iloc[[row for number in numbers for row in inputs.items[number].rows]]
    good = good.assign(**{image_column: [name.partition("/")[2] for name in good[image_column]]})
    good.to_csv(work / "compared.csv", index=False)
    predictions = [_predict(recipe, run, work, number, root) for number, run in enumerate(recipe.runs)]
    layout = recipe.format
    expected, actual = (work / f"{name}{layout.suffix}" for name in ("expected", "actual"))
    if recipe.meaning.kind == "maps":
        write_masks(expected, layout, _masks(recipe, predictions, ids), None, None)
        _take(out / f"submission{layout.suffix}", layout.row_ids(ids), actual)
        return Comparison(len(ids), None, difference(expected, actual, layout.name))
    values = _rows(recipe, predictions, ids)
    said = read_rows(out / PARTS, recipe, len(inputs.ids))[numbers]
    probability = float(np.abs(said - values).max())
    if recipe.columns["unit"] is not None or recipe.blend == "rank":  # answers that other images have a part in
        return Comparison(len(ids), probability, None)
    write_table(expected, layout.table(ids, decide_rows(recipe, values, None)), None, None)
    _take(out / f"submission{layout.suffix}", ids, actual)
    return Comparison(len(ids), probability, difference(expected, actual, layout.name))


def _predict(recipe: Recipe, run: BundledRun, work: Path, number: int, root: Path) -> Predictions:
    """What predict.py says of the compared images; of the snapshots that are bundled."""
    views = [View.from_name(name) for name in run.views]
    tta = {
        "views": list(dict.fromkeys(view.symmetry for view in views)),
        "mean": run.mean,
        "scales": list(dict.fromkeys(view.scale for view in views if view.crop is None)),
        "crops": list(dict.fromkeys(view.crop for view in views if view.crop is not None)),
    }
    path = work / f"tta{number}.yaml"
    path.write_text(yaml.safe_dump(tta), encoding="utf-8")
    choices = Choices(tta=path, tiles=recipe.tiles)
    (folder,) = predict_runs(
        [Path(run.source)], choices, work / "compared.csv", work / f"compared{number}", Console(quiet=True)
    )
    predictions = read_predictions(beside(folder, run.output))
    names = {(model.fold, Path(model.folder).name) for model in run.models}
    keys = zip(predictions.frame["fold"], predictions.frame["snapshot"], strict=True)
    return Predictions(folder, predictions.header, predictions.frame[[key in names for key in keys]])


def _rows(recipe: Recipe, predictions: list[Predictions], ids: list[str]) -> np.ndarray:
    """(N, members, C)."""
    frames = [each.frame.drop(columns=MEMBER[1:]).groupby(["fold", "id"]).mean() for each in predictions]
    return np.stack([frames[run].loc[fold].loc[ids].to_numpy() for run, fold in recipe.members], axis=1)


def _masks(recipe: Recipe, predictions: list[Predictions], ids: list[str]) -> Iterator[tuple[str, bytes]]:
    """The encoded mask of each id."""
    for id in ids:
        said: dict[tuple[int, int], list[np.ndarray]] = {member: [] for member in recipe.members}
        for number, each in enumerate(predictions):
            for row in iter_maps(each, [id]):
                said[number, row.fold].append(row.probability)
        maps = np.stack([np.mean(snapshots, axis=0) for snapshots in said.values()])
        yield id, recipe.format.encode(decide_mask(recipe, recipe.members, maps))


def _take(submission: Path, ids: list[str], out: Path) -> None:
    """The rows or files of a submission that have these ids."""
    if submission.suffix == ".zip":
        with zipfile.ZipFile(submission) as archive, zipfile.ZipFile(out, "w") as some:
            for id in ids:
                some.writestr(f"{id}.png", archive.read(f"{id}.png"))
        return
    frame = pd.read_csv(submission, dtype=str, keep_default_na=False)
    frame[frame.iloc[:, 0].isin(ids)].to_csv(out, index=False)
