"""Find boxes in predicted masks: of a training image by the model that has not seen it, of a test image by all.

A table of boxes has the edges x0, y0, x1, y1 in pixels, which are empty if nothing was found, and `box_score`, the mean
probability of the pixels that make the box. `<table>.json` records the run, its folds and the settings.

- one box per image (union, peak): the rows and columns of the table that the run was trained on, and `fold`.
- one row per component: `id` ("<image>-<number>"), `picture` (the id of the image), `image`, `area` in pixels,
  `predicted` and, in training, `label`: the class that most of its pixels have in the ground truth; `fold`. A test
  image without any has one row without a box.

With `Finder.map`, `score_map` names a file of the summed probability in the folder `<table>-maps`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX, FOLD, MADE_BY, SCORE, SCORE_MAP, origin_path
from foldwise.data.images import default_scale, read_image
from foldwise.data.orientation import oriented
from foldwise.data.problems import some
from foldwise.data.table import Table
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal, refuse_all
from foldwise.files import check_new, new_folder, sha256_file, write_atomic, write_json, write_text
from foldwise.predictions.finder import Finder, write_map
from foldwise.predictions.ground_truth import (
    GroundTruth,
    check_predictions,
    mismatches,
    read_ground_truth,
    read_test_table,
)
from foldwise.predictions.pseudo.rules import check_suffix, write_table
from foldwise.predictions.pseudo.teachers import IDENTITY, run_problems
from foldwise.predictions.schema import listed, raise_problems
from foldwise.predictions.sources import find_sources
from foldwise.predictions.store import Predictions, iter_average_maps, read_predictions


@dataclass(frozen=True)
class Boxes:
    """Counts of a written table: its rows, and the ids of images in which nothing was found."""

    path: Path
    rows: int
    images: int
    without: list[str]


def write_boxes(
    run: Path, out: Path, finder: Finder, test: str | None = None, table: Path | None = None
) -> list[Boxes]:
    """Write `out` for the training images and, if the run has test predictions, `<out>_test`; all or nothing.

    Args:
        test: a name in `<run>/predictions`; None: the only test predictions, if there are any.
        table: of the test images; None: `data.test_table`.
    """
    check_suffix(out)
    refuse_all(run_problems(run))
    source = find_sources([run], test=test)[0]
    truth = read_ground_truth(run)
    oof = read_predictions(source.oof)
    check_predictions(oof, truth)
    _check(truth, finder)
    parts: list[tuple[Path, Table, Predictions]] = [(out, truth.table, oof)]
    if source.test is not None:
        images = read_test_table(truth, table)
        predictions = read_predictions(source.test)
        problems = mismatches(predictions.header, truth, "test")
        problems += listed(f"ids of {images.path} have no prediction", set(images.ids) - set(predictions.frame["id"]))
        raise_problems(predictions.folder, problems)
        parts.append((out.with_name(f"{out.stem}_test{out.suffix}"), images, predictions))
    check_new(*(path for part, *_ in parts for path in (part, origin_path(part), maps_folder(part))))
    origin = {
        "created_by": MADE_BY,
        "run": str(run),
        "identity": sha256_file(run / IDENTITY)[:16],
        "folds_hash": truth.folds_hash,
        **asdict(finder),
    }
    written = []
    with ExitStack() as stack:
        for path, part, predictions in parts:
            folder = stack.enter_context(new_folder(maps_folder(path))) if finder.map else None
            frame, boxes = _frame(truth, part, predictions, finder, path, folder)
            write_table(stack.enter_context(write_atomic(path)), frame)
            write_json(stack.enter_context(write_atomic(origin_path(path))), origin | {"rows": boxes.rows})
            written.append(boxes)
    return written


def write_data_config(data: Mapping[str, Any], folder: Path, boxes: Sequence[Boxes], components: bool) -> Path:
    """Write `<folder>/<name of the table>.yaml`: the data settings of a run with the tables of boxes as its tables."""
    table = boxes[0].path
    path = folder / f"{table.stem}.yaml"
    check_new(path)
    columns = "id: id, image: image, target: label, group: picture" if components else "target: null"
    lines = [
        f"# The data of {data['name']} with the boxes that {MADE_BY} found. The fold column holds each box in the fold",
        "# of its picture, which the model had not seen. Change target to the column that is to be predicted.",
        f"defaults: [{data['name']}, _self_]",
        "",
        f"name: {json.dumps(table.stem)}",
        f"root: {json.dumps(data['root'])}",
        f"table: {json.dumps(str(table))}",
        f"test_table: {json.dumps(str(boxes[1].path) if len(boxes) > 1 else None)}",
        f"prepared: {json.dumps(str(table.with_suffix('')) + '-prepared')}",
        f"columns: {{{columns}, fold: {FOLD}}}",
        "classes: null",
    ]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _check(truth: GroundTruth, finder: Finder) -> None:
    table = truth.table
    problems = []
    if truth.task.kind != "maps":
        problems.append(f"boxes are found in masks, and {table.path} has the task {truth.task.name}")
    if len(truth.items.source) != len(table):
        problems.append("an item with several pictures has no box of its own")
    if table.gold.any():
        problems.append(
            "gold rows have no out-of-fold masks to find boxes in: train the masks with data.columns.gold=null"
        )
    unknown = [name for name in finder.classes if name not in table.classes]
    if unknown:
        problems.append(f"--classes has {', '.join(unknown)}; the classes are {', '.join(table.classes)}")
    if len(set(finder.classes)) < len(finder.classes):
        problems.append("--classes has a class twice, whose probability would count twice: name each once")
    if not 0 <= finder.threshold <= 1:
        problems.append(f"--threshold {finder.threshold} is no probability, from 0 to 1")
    taken = [name for name in (*BOX, SCORE, SCORE_MAP) if name in table.frame]
    if taken:
        problems.append(f"{table.path} has the columns {', '.join(taken)}, which are to be written: rename them")
    refuse_all(problems)


def _frame(
    truth: GroundTruth, table: Table, predictions: Predictions, finder: Finder, path: Path, folder: Path | None
) -> tuple[pd.DataFrame, Boxes]:
    """The table of boxes of one set of images; their scores are written into `folder`."""
    training = table is truth.table
    found: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, str] = {}
    scale = _scale(truth) if folder else 0
    for id, score, rows in _find_all(truth, table, predictions, finder):
        found[id] = rows
        if folder is not None:
            name = write_map(folder, table.row_of[id], score, scale)
            maps[id] = f"{maps_folder(path).name}/{name}"
    unknown = [id for id in table.ids if id not in maps]
    if unknown and finder.map and finder.how != "components":
        raise Refusal(f"--map needs a prediction of every image, and {len(unknown)} have none: {some(unknown)}")
    if finder.how == "components" and not any(found.values()):
        raise Refusal(f"nothing was found in {len(table)} images: lower --threshold or --least")
    frame = finder.table(read_file(table.path), table.ids, table.frame["image"], found, maps, every=not training)
    if training:
        folds = dict(zip(table.ids, truth.folds.tolist(), strict=True))
        held = frame["picture"] if finder.how == "components" else table.ids
        frame = frame.drop(columns=[FOLD], errors="ignore").assign(**{FOLD: [folds[id] for id in held]})
    return frame, Boxes(path, len(frame), len(table), [id for id in table.ids if not found.get(id)])


def maps_folder(table: Path) -> Path:
    return table.with_name(f"{table.stem}-maps")


def _scale(truth: GroundTruth) -> float:
    """The stored value of the pictures that stands for 1.0."""
    data = truth.config["data"]
    with oriented(truth.table.exif):
        scale = data["scale"] or default_scale(read_image(truth.table.image_path(0), data["mode"]).dtype)
    if not 1 < scale <= 65535:
        raise Refusal(f"--map stores 8 or 16 bits beside pictures of as many, and these have {scale:g} for 1.0")
    return float(scale)


def _find_all(
    truth: GroundTruth, table: Table, predictions: Predictions, finder: Finder
) -> Iterator[tuple[str, np.ndarray, list[dict[str, Any]]]]:
    """Yield (id, score, cells of each box) of every predicted image."""
    from rich.console import Console
    from rich.progress import track

    classes = list(table.classes)
    predicted = set(predictions.frame["id"])
    ids = [id for id in table.ids if id in predicted]
    console = Console(stderr=True)
    maps = iter_average_maps(predictions, ids)
    for id, probability in track(maps, "finding boxes", len(ids), console=console, transient=True):
        parts, score = finder.score(probability, classes, truth.task.exclusive)
        found = finder.find(score)
        rows = finder.describe(found, parts)
        if finder.how == "components" and table is truth.table and found:
            mask = table.read_mask(table.row_of[id])
            for row, each in zip(rows, found, strict=True):
                row["label"] = _label(mask, each.mask, classes)
            rows = [row for row in rows if row["label"] is not None]
        yield id, score, rows


def _label(mask: np.ndarray, where: np.ndarray, classes: Sequence[str]) -> str | None:
    """The class that most pixels `where` have in the ground truth; None if all are ignored."""
    values = mask[where]
    values = values[values < len(classes)]
    if not len(values):
        return None
    return classes[int(np.bincount(values, minlength=len(classes)).argmax())]
