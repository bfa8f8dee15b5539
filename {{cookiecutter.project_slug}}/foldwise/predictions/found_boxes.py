"""Find boxes in predicted masks: of a training image by the model that has not seen it, of a test image by all.

A table of boxes has the edges x0, y0, x1, y1 in pixels, which are empty if nothing was found, and `box_score`, the mean
probability of the pixels that make the box. `<table>.json` records the run, its folds and the settings.

- one box per image (union, peak): the rows and columns of the table that the run was trained on, and `fold`.
- one row per component: `id` ("<image>-<number>"), `picture` (the id of the image), `image`, `area` in pixels,
  `predicted` and, in training, `label`: the class that most of its pixels have in the ground truth; `fold`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX, FOLD, MADE_BY, SCORE, origin_path
from foldwise.data.table import Table
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal, refuse_all
from foldwise.files import check_new, sha256_file, write_atomic, write_json, write_text
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

NEIGHBOURS = 8  # pixels that touch at a corner are one component


class Found(NamedTuple):
    """A box in pixels, with the mean probability of its pixels and the mask (H, W) bool of them."""

    box: tuple[int, int, int, int]
    score: float
    mask: np.ndarray


@dataclass(frozen=True)
class Finder:
    """Finds boxes in the summed probability of some classes.

    Attributes:
        how: "union": around all pixels from `threshold` on; "components": around each connected group of them; "peak":
            a square of `side` pixels where its mean is highest, if that is `threshold` at least.
        least: pixels; smaller components do not count.
    """

    how: str
    classes: tuple[str, ...]
    threshold: float = 0.5
    least: int = 1
    side: int = 64

    def find(self, score: np.ndarray) -> list[Found]:
        """Find boxes in a score (H, W) of 0 to 1, the largest first."""
        if self.how == "peak":
            return self._peak(score)
        count, labels, figures, _ = cv2.connectedComponentsWithStats(
            (score >= self.threshold).astype(np.uint8), connectivity=NEIGHBOURS
        )
        kept = [n for n in range(1, count) if figures[n, cv2.CC_STAT_AREA] >= self.least]
        kept.sort(key=lambda n: (-int(figures[n, cv2.CC_STAT_AREA]), n))
        masks = [labels == number for number in kept]
        if self.how == "union" and masks:
            masks = [np.any(masks, axis=0)]
        return [Found(_around(mask), float(score[mask].mean()), mask) for mask in masks]

    def _peak(self, score: np.ndarray) -> list[Found]:
        height, width = (min(self.side, side) for side in score.shape)
        sums = cv2.integral(score.astype(np.float64))
        means = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = np.unravel_index(int(means.argmax()), means.shape)
        mean = float(means[top, left]) / (height * width)
        if mean < self.threshold:
            return []
        mask = np.zeros(score.shape, bool)
        mask[top : top + height, left : left + width] = True
        return [Found((int(left), int(top), int(left) + width, int(top) + height), mean, mask)]


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
    check_new(*(path for part, *_ in parts for path in (part, origin_path(part))))
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
            frame, boxes = _frame(truth, part, predictions, finder, path)
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
    unknown = [name for name in finder.classes if name not in table.classes]
    if unknown:
        problems.append(f"--classes has {', '.join(unknown)}; the classes are {', '.join(table.classes)}")
    if len(set(finder.classes)) < len(finder.classes):
        problems.append("--classes has a class twice, whose probability would count twice: name each once")
    if not 0 <= finder.threshold <= 1:
        problems.append(f"--threshold {finder.threshold} is no probability, from 0 to 1")
    taken = [name for name in (*BOX, SCORE) if name in table.frame]
    if taken:
        problems.append(f"{table.path} has the columns {', '.join(taken)}, which are to be written: rename them")
    refuse_all(problems)


def _frame(
    truth: GroundTruth, table: Table, predictions: Predictions, finder: Finder, path: Path
) -> tuple[pd.DataFrame, Boxes]:
    """The table of boxes of one set of images."""
    found = dict(_find_all(truth, table, predictions, finder))
    without = [id for id in table.ids if not any(each["box"] for each in found.get(id, []))]
    folds = dict(zip(truth.table.ids, truth.folds.tolist(), strict=True)) if table is truth.table else {}
    if finder.how == "components":
        rows = [
            {"id": f"{id}-{number}", "picture": id, "image": table.frame["image"].iat[row]}
            | _edges(each)
            | {name: value for name, value in each.items() if name not in ("box", SCORE)}
            | ({FOLD: folds[id]} if folds else {})
            for row, id in enumerate(table.ids)
            for number, each in enumerate(found.get(id, []))
        ]
        if not rows:
            raise Refusal(f"nothing was found in {len(table)} images: lower --threshold or --least")
        frame = pd.DataFrame(rows)
    else:
        frame = read_file(table.path).reset_index(drop=True)
        edges = [_edges((found.get(id) or [{"box": None, SCORE: None}])[0]) for id in table.ids]
        frame = frame.drop(columns=[FOLD], errors="ignore").join(pd.DataFrame(edges).astype(object))
        frame = frame.assign(**{FOLD: [folds[id] for id in table.ids]}) if folds else frame
    return frame, Boxes(path, len(frame), len(table), without)


def _edges(found: dict[str, Any]) -> dict[str, Any]:
    values = found["box"] or (None,) * 4
    return dict(zip(BOX, values, strict=True)) | {SCORE: found[SCORE]}


def _find_all(
    truth: GroundTruth, table: Table, predictions: Predictions, finder: Finder
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield (id, boxes) of every predicted image."""
    from rich.console import Console
    from rich.progress import track

    classes = list(table.classes)
    chosen = [classes.index(name) for name in finder.classes]
    predicted = set(predictions.frame["id"])
    ids = [id for id in table.ids if id in predicted]
    console = Console(stderr=True)
    maps = iter_average_maps(predictions, ids)
    for id, probability in track(maps, "finding boxes", len(ids), console=console, transient=True):
        parts = probability[chosen]
        score = parts.sum(axis=0) if truth.task.exclusive else parts.max(axis=0)
        found = finder.find(score)
        rows = [{"box": each.box, SCORE: round(each.score, 6), "area": int(each.mask.sum())} for each in found]
        if finder.how == "components":
            for row, each in zip(rows, found, strict=True):
                row["predicted"] = finder.classes[int(parts[:, each.mask].mean(axis=1).argmax())]
            if table is truth.table and found:
                mask = table.read_mask(table.row_of[id])
                for row, each in zip(rows, found, strict=True):
                    row["label"] = _label(mask, each.mask, classes)
                rows = [row for row in rows if row["label"] is not None]
        yield id, rows


def _label(mask: np.ndarray, where: np.ndarray, classes: Sequence[str]) -> str | None:
    """The class that most pixels `where` have in the ground truth; None if all are ignored."""
    values = mask[where]
    values = values[values < len(classes)]
    if not len(values):
        return None
    return classes[int(np.bincount(values, minlength=len(classes)).argmax())]


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
