"""Evidence: predictions matched with their ground truth, from which scores are computed.

For maps, only what metrics measured is kept. Calibration is kept as sums per bin of confidence, an array (3, B): number
of predictions, summed confidence, number of correct predictions. Sums of images add up, so one map at a time is in
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.boxes import Boxes, difference, found_boxes, merge, true_boxes
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import confusion_matrix, count_pixels, cross_entropy, is_correct, row_errors
from foldwise.predictions.metrics.base import ratio
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.search import search_oof
from foldwise.predictions.store import Predictions, average_members, iter_average_maps
from foldwise.progress import Progress, silent, stepping

BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True, eq=False)
class ClassEvidence:
    """Evidence about predicted classes."""

    counts: np.ndarray  # (C, 3) correct, predicted and true units (pixels) of each class
    confusion: np.ndarray | None  # (C, C) counts of (true, predicted) class; None if classes are not exclusive
    reliability: np.ndarray  # (3, B) calibration sums
    correct: np.ndarray  # (U,) whether every label or pixel is right
    unsure: np.ndarray  # (U,) uncertainty


@dataclass(frozen=True, eq=False)
class Evidence:
    """A prediction of U scored units, which are images if the table has no units."""

    name: str
    predictions: Predictions
    arrays: Sequence[tuple[np.ndarray, ...]]  # for each metric, the arguments of `metrics.folds.prepare_score`
    folds: np.ndarray  # (U,) 0 for test predictions
    rows: np.ndarray  # (U,) index of the unit's first row in the table
    wrong: np.ndarray  # (U,) error
    average: pd.DataFrame | None = None  # values of all images by id, averaged over members; None for maps and boxes
    classes: ClassEvidence | None = None  # None if the values are not class probabilities
    boxes: Sequence[tuple[Boxes, Boxes, Sequence[Boxes]]] = ()  # see `gather_boxes`


def gather_evidence(
    name: str,
    predictions: Predictions,
    truth: GroundTruth,
    metrics: Sequence[Any],
    rows: np.ndarray,
    progress: Progress = silent,
) -> Evidence:
    """Match predictions with the ground truth.

    Args:
        rows: (N,) indices of the table rows to score; all have predictions (`ground_truth.check_predictions`).
    """
    folds = truth.folds[rows]
    if predictions.header.split == "oof" and truth.task.kind != "vectors":
        fold_of = predictions.frame.drop_duplicates("id").set_index("id")["fold"]
        folds = fold_of.loc[truth.table.frame["id"].iloc[rows]].to_numpy(np.int64)
    if truth.task.kind == "vectors":
        found = search_oof([predictions], truth.table, truth.folds, 1)
        found = found.take(np.isin(found.rows, rows))
        ids = truth.table.frame["id"].iloc[rows]
        named = pd.DataFrame({"name": found.names[:, 0], "similarity": found.scores[:, 0]}, ids)
        wrong = 1 - 1 / np.maximum(found.rank, 1)
        return Evidence(name, predictions, [(found.rank,) for _ in metrics], folds, rows, wrong, named)
    if truth.task.kind == "boxes":
        return _gather_boxes(name, predictions, truth, metrics, rows, folds)
    if truth.task.kind == "maps":
        return _gather_maps(name, predictions, truth, metrics, rows, folds, stepping(progress, name, len(rows)))
    table, task = truth.table, truth.task
    average = average_members(predictions.frame, table.classes).set_index("id")
    values = average.loc[table.frame["id"].iloc[rows]].to_numpy(np.float64)
    target, probability, folds, records = by_unit(table, rows, values, folds)
    if "unit" in table.frame:
        rows = rows[~table.frame["unit"].iloc[rows].duplicated().to_numpy()]
    arrays = [(target, probability, records) for _ in metrics]
    if not task.probabilities:
        wrong = row_errors(target, probability)
        return Evidence(name, predictions, arrays, folds, rows, wrong, average)
    wrong = cross_entropy(target, probability, task.exclusive)
    classes = _class_evidence(target, probability, task.exclusive)
    return Evidence(name, predictions, arrays, folds, rows, wrong, average, classes)


def confusion_notes(one: Evidence, truth: GroundTruth, most: int = 10) -> list[str]:
    """Describe how many images have nothing to find, and the identities that are most often confused."""
    assert truth.table.target is not None and one.average is not None
    rank, classes = one.arrays[0][0], truth.table.classes
    pairs = np.stack([truth.table.target[one.rows, 0], one.average["name"].to_numpy()])[:, rank > 1]
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    texts = [f"{classes[a]} → {classes[b]} ({n})" for (a, b), n in zip(found.T[order], counts[order], strict=True)]
    notes = [f"{one.name}: most confused: {', '.join(texts)}"] if texts else []
    if new := int((rank == 0).sum()):
        notes.append(f"{new} images are not scored: none that they are searched among has their identity")
    return notes


def _class_evidence(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> ClassEvidence:
    truth_of, predicted, confusion = target >= 0.5, probability >= 0.5, None
    sums = reliability_bins(probability, target)
    if exclusive:
        classes = np.arange(target.shape[1])
        true, best = target.argmax(axis=1), probability.argmax(axis=1)
        truth_of, predicted = classes == true[:, None], classes == best[:, None]
        confusion = confusion_matrix(true, best, len(classes))
        sums = reliability_bins(probability.max(axis=1), true == best)
    return ClassEvidence(
        np.stack([(truth_of & predicted).sum(axis=0), predicted.sum(axis=0), truth_of.sum(axis=0)], axis=1),
        confusion,
        sums,
        correct=is_correct(target, probability, exclusive),
        unsure=cross_entropy(probability, probability, exclusive),
    )


def _gather_maps(
    name: str,
    predictions: Predictions,
    truth: GroundTruth,
    metrics: Sequence[Any],
    rows: np.ndarray,
    folds: np.ndarray,
    step: Any,
) -> Evidence:
    table, ignore_index = truth.table, truth.metric.ignore_index
    measured: list[list[np.ndarray]] = [[] for _ in metrics]
    counts, unsure, wrong, right = [], [], [], []
    confusion, sums = np.zeros((len(table.classes),) * 2, np.int64), np.zeros((3, BINS))
    exclusive = truth.task.exclusive
    maps = iter_average_maps(predictions, table.frame["id"].iloc[rows].tolist())
    for row, (id, probability) in zip(rows, maps, strict=True):
        mask, answer = table.read_mask(row), truth.task.answer(probability)
        try:
            counts.append(count_pixels(mask, answer, len(table.classes), ignore_index))
            for metric, evidence in zip(metrics, measured, strict=True):
                evidence.append(counts[-1] if metric.of_counts else metric.measure(mask, probability))
        except Refusal as error:
            raise PredictionsError(predictions.folder, [f"id {id}: {error}"]) from error
        valid = mask != ignore_index
        if exclusive:
            confidence, correct = probability.max(axis=0)[valid], (mask == answer)[valid]
            confusion += confusion_matrix(mask[valid].astype(np.int64), answer[valid], len(table.classes))
            sums += reliability_bins(confidence, correct)
            wrong.append(1 - correct.sum() / max(len(correct), 1))
        else:
            values, target = probability[valid], mask[valid]
            confidence, correct = np.maximum(values, 1 - values), answer[valid] == (target >= 0.5)
            sums += reliability_bins(values, target)
            wrong.append(np.abs(values - target).mean() if len(values) else 0.0)
        right.append(correct.all())
        unsure.append(1 - confidence.mean() if len(confidence) else 0.0)
        step()
    matrix = confusion if exclusive else None
    classes = ClassEvidence(np.sum(counts, axis=0), matrix, sums, np.array(right), np.array(unsure))
    arrays = [(np.stack(evidence),) for evidence in measured]
    return Evidence(name, predictions, arrays, folds, rows, np.array(wrong), classes=classes)


def _gather_boxes(
    name: str, predictions: Predictions, truth: GroundTruth, metrics: Sequence[Any], rows: np.ndarray, folds: np.ndarray
) -> Evidence:
    boxes = gather_boxes(predictions, truth, rows)
    arrays = [(np.fromiter((metric.measure(*each[:2]) for each in boxes), object, len(boxes)),) for metric in metrics]
    wrong = np.array([difference(true, found) for true, found, _ in boxes])
    return Evidence(name, predictions, arrays, folds, rows, wrong, boxes=boxes)


def gather_boxes(
    predictions: Predictions, truth: GroundTruth, rows: np.ndarray
) -> list[tuple[Boxes, Boxes, list[Boxes]]]:
    """Of each of these rows: the true boxes, those found, and each member's."""
    members = found_boxes(predictions)
    of_rows = [(true_boxes(truth.table, row), members[truth.table.ids[row]]) for row in rows.tolist()]
    return [(true, merge(found), found) for true, found in of_rows]


def disagreement(evidence: Sequence[Evidence]) -> np.ndarray | None:
    """Mean difference (U,) of an image's boxes between predictions, or of one between its members; None if alone."""
    sides = [[each.boxes[unit][1] for each in evidence] for unit in range(len(evidence[0].boxes))]
    if len(evidence) == 1:
        sides = [list(members) for _, _, members in evidence[0].boxes]
    if max(map(len, sides), default=0) < 2:
        return None
    pairs = [[difference(a, b) for a, b in combinations(each, 2)] for each in sides]
    return np.array([np.mean(each) if each else 0.0 for each in pairs])


def class_table(evidence: ClassEvidence, truth: GroundTruth) -> pd.DataFrame:
    """Tabulate counts, precision, recall and F1 of each class, and IoU for masks; NaN if undefined."""
    correct, predicted, true = evidence.counts.T
    table = pd.DataFrame({"class": truth.table.classes, "true": true, "predicted": predicted, "correct": correct})
    table["precision"], table["recall"] = ratio(correct, predicted), ratio(correct, true)
    table["F1"] = ratio(2 * correct, predicted + true)
    return table.assign(IoU=ratio(correct, predicted + true - correct)) if truth.task.kind == "maps" else table


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Sum count, confidence and outcome in equal bins of [0, 1]; (3, B) float64.

    Args:
        confidence: probability of the predicted class, or of every label if classes are not exclusive; any shape.
        correct: same shape: whether the prediction is right, or whether (how much of) the label is present.
    """
    confidence = np.asarray(confidence, np.float64).ravel()
    index = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    weights = (None, confidence, np.asarray(correct, np.float64).ravel())
    return np.stack([np.bincount(index, weights=weight, minlength=BINS) for weight in weights]).astype(np.float64)


def expected_calibration_error(sums: np.ndarray) -> float:
    """Mean |confidence - accuracy| over bins, weighted by count; NaN without predictions.

    (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, equation 3.)
    """
    count, confidence, correct = sums
    return float(np.abs(confidence - correct).sum() / count.sum()) if count.sum() else float("nan")


def reliability_curve(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean confidence (B,) and accuracy (B,) of each bin; NaN for empty bins."""
    count, confidence, correct = sums
    return ratio(confidence, count), ratio(correct, count)
