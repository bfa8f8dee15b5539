"""One prediction beside its ground truth: what scores are made of. Of maps only what metrics measured is kept.

Calibration is kept as sums for bins of confidence, an array (3, B): how many predictions, their summed confidence, and
how many are correct. Sums of several images add up, so that maps of pixels are never in memory together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import read_mask
from foldwise.errors import Refusal
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import confusion_matrix, cross_entropy, is_correct, pixel_confusion, pixel_counts
from foldwise.predictions.metrics.base import ratio
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.store import Predictions, average_members, iter_average_maps
from foldwise.progress import Progress, silent, stepping

BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True, eq=False)
class ClassEvidence:
    """Predicted classes and their probabilities beside the ground truth.

    Attributes:
        counts: (C, 3) correct, predicted and true units (pixels) of each class.
        confusion: (C, C) counts of (true, predicted) class; None where classes are not exclusive.
        reliability: (3, B) sums, see above.
        correct: (U,) whether the prediction is the ground truth, in every label or pixel.
        unsure: (U,) the larger, the less decided.
    """

    counts: np.ndarray
    confusion: np.ndarray | None
    reliability: np.ndarray
    correct: np.ndarray
    unsure: np.ndarray


@dataclass(frozen=True, eq=False)
class Evidence:
    """A prediction beside the ground truth; U scored units, which are images where the table has no units.

    Attributes:
        arrays: of each metric, what `metrics.folds.prepare_score` takes.
        folds: (U,) the fold of each unit; 0 for predictions that every fold's model made.
        rows: (U,) the row of the table that stands for the unit, its first.
        wrong: (U,) the larger, the further from the ground truth.
        average: the values by id, averaged over the members, of all images; None for maps.
        classes: None where the values are no probabilities of classes.
    """

    name: str
    predictions: Predictions
    arrays: Sequence[tuple[np.ndarray, ...]]
    folds: np.ndarray
    rows: np.ndarray
    wrong: np.ndarray
    average: pd.DataFrame | None = None
    classes: ClassEvidence | None = None


def gather_evidence(
    name: str,
    predictions: Predictions,
    truth: GroundTruth,
    metrics: Sequence[Any],
    rows: np.ndarray,
    progress: Progress = silent,
) -> Evidence:
    """Lay predictions beside the ground truth.

    Args:
        metrics: what will be scored, ready for the task.
        rows: (N,) rows of the table to score; they are predicted (`ground_truth.check_predictions`).

    Raises:
        Refusal: a mask or map cannot be read or does not fit the other.
    """
    folds = np.zeros(len(rows), np.int64)
    if predictions.header.split == "oof":
        fold_of = predictions.frame.drop_duplicates("id").set_index("id")["fold"]
        folds = fold_of.loc[truth.table.frame["id"].iloc[rows]].to_numpy(np.int64)
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
        wrong = np.abs(target - probability).mean(axis=1)
        return Evidence(name, predictions, arrays, folds, rows, wrong, average)
    wrong = cross_entropy(target, probability, task.exclusive)
    classes = _class_evidence(target, probability, task.exclusive)
    return Evidence(name, predictions, arrays, folds, rows, wrong, average, classes)


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
    counts, unsure = [], []
    confusion, sums = np.zeros((len(table.classes),) * 2, np.int64), np.zeros((3, BINS))
    maps = iter_average_maps(predictions, table.frame["id"].iloc[rows].tolist())
    for row, (id, probability) in zip(rows, maps, strict=True):
        mask, predicted = read_mask(table.mask_path(row)), probability.argmax(axis=0)
        try:
            own = pixel_confusion(mask, predicted, len(table.classes), ignore_index)
            counts.append(pixel_counts(own))
            for metric, evidence in zip(metrics, measured, strict=True):
                evidence.append(counts[-1] if metric.of_counts else metric.measure(mask, probability))
        except Refusal as error:
            raise PredictionsError(predictions.folder, [f"id {id}: {error}"]) from error
        valid = mask != ignore_index
        confidence = probability.max(axis=0)[valid]
        confusion += own
        sums += reliability_bins(confidence, (mask == predicted)[valid])
        unsure.append(1 - confidence.mean() if len(confidence) else 0.0)
        step()
    stacked = np.stack(counts)
    correct, true = stacked[:, :, 0].sum(axis=1), stacked[:, :, 2].sum(axis=1)
    classes = ClassEvidence(stacked.sum(axis=0), confusion, sums, correct == true, np.array(unsure))
    arrays = [(np.stack(evidence),) for evidence in measured]
    wrong = 1 - correct / np.maximum(true, 1)
    return Evidence(name, predictions, arrays, folds, rows, wrong, classes=classes)


def class_table(evidence: ClassEvidence, truth: GroundTruth) -> pd.DataFrame:
    """Counts of units (pixels), precision, recall and F1 of each class, and IoU of masks; NaN where undefined."""
    correct, predicted, true = evidence.counts.T
    table = pd.DataFrame({"class": truth.table.classes, "true": true, "predicted": predicted, "correct": correct})
    table["precision"], table["recall"] = ratio(correct, predicted), ratio(correct, true)
    table["F1"] = ratio(2 * correct, predicted + true)
    return table.assign(IoU=ratio(correct, predicted + true - correct)) if truth.task.kind == "maps" else table


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(3, B) float64: the count, the summed confidence and the summed outcome of each of B equal bins of [0, 1].

    Args:
        confidence: probabilities in [0, 1], of any shape: of the predicted class; for multi-label, of every label.
        correct: of the same shape: whether the prediction is correct; for multi-label, whether the label is there.
    """
    confidence = np.asarray(confidence, np.float64).ravel()
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    weights = (None, confidence, np.asarray(correct, np.float64).ravel())
    return np.stack([np.bincount(place, weights=weight, minlength=bins) for weight in weights]).astype(np.float64)


def expected_calibration_error(sums: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their counts; NaN without predictions.

    (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, equation 3.)
    """
    count, confidence, correct = sums
    return float(np.abs(confidence - correct).sum() / count.sum()) if count.sum() else float("nan")


def reliability_curve(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence (B,) and accuracy (B,) of each bin; NaN where a bin is empty."""
    count, confidence, correct = sums
    return ratio(confidence, count), ratio(correct, count)
