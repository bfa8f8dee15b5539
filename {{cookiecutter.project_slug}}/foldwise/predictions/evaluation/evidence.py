"""What scores are made of: one prediction laid beside the truth. Of maps only what metrics measured is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.evaluation.reliability import BINS, reliability_bins
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import (
    confusion_matrix,
    cross_entropy,
    is_correct,
    pixel_confusion,
    pixel_counts,
)
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.store import Predictions, average_members, iter_average_maps


@dataclass(frozen=True, eq=False)
class Evidence:
    """A prediction beside the truth; U scored units, which are images where the table has no units.

    Attributes:
        arrays: of each metric, what `weighted.prepare_score` takes.
        folds: (U,) the fold of each unit; 0 for predictions that every fold's model made.
        rows: (U,) the row of the table that stands for the unit, its first.
        wrong: (U,) the larger, the further from the truth.
        average: the values by id, averaged over the members, of all images; None for maps.
        classes: what can be said where the values are probabilities of classes.
    """

    name: str
    predictions: Predictions
    arrays: Sequence[tuple[np.ndarray, ...]]
    folds: np.ndarray
    rows: np.ndarray
    wrong: np.ndarray
    average: pd.DataFrame | None = None
    classes: "ClassEvidence | None" = None


@dataclass(frozen=True, eq=False)
class ClassEvidence:
    """Answers and probabilities of classes beside the truth.

    Attributes:
        counts: (C, 3) right, answered and true units (pixels) of each class.
        confusion: (C, C) counts of (true, answered) class; None where classes are not exclusive.
        reliability: (3, B) sums, see `predictions/evaluation/reliability.py`.
        right: (U,) whether the answer is the truth, in every label or pixel.
        unsure: (U,) the larger, the less decided.
    """

    counts: np.ndarray
    confusion: np.ndarray | None
    reliability: np.ndarray
    correct: np.ndarray
    unsure: np.ndarray


def gather_evidence(
    name: str,
    predictions: Predictions,
    truth: GroundTruth,
    metrics: Sequence[Any],
    rows: np.ndarray,
    progress: bool = False,
) -> Evidence:
    """Lay predictions beside the truth.

    Args:
        metrics: what will be scored, ready for the task.
        rows: (N,) rows of the table to score; they are predicted (`matching.check_predictions`).

    Raises:
        Refusal: a mask or map cannot be read or does not fit the other.
    """
    gather = _gather_maps if truth.task.kind == "maps" else _gather_rows
    return gather(name, predictions, truth, metrics, rows, progress)


def class_table(evidence: ClassEvidence, truth: GroundTruth) -> pd.DataFrame:
    """Precision, recall and F1 of each class, and IoU of masks; what it counts are units, or pixels.

    A figure that does not exist is NaN.
    """
    right, answered, true = evidence.counts.T.astype(np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)

    table = pd.DataFrame({"class": truth.table.classes, "true": true, "predicted": answered, "correct": right})
    table = table.astype({"true": np.int64, "predicted": np.int64, "correct": np.int64})
    table = table.assign(
        precision=ratio(right, answered), recall=ratio(right, true), F1=ratio(2 * right, answered + true)
    )
    return table.assign(IoU=ratio(right, answered + true - right)) if truth.task.kind == "maps" else table


def _folds(predictions: Predictions, truth: GroundTruth, rows: np.ndarray) -> np.ndarray:
    if predictions.header.split == "test":
        return np.zeros(len(rows), np.int64)
    fold_of = predictions.frame.drop_duplicates("id").set_index("id")["fold"]
    return fold_of.loc[truth.table.frame["id"].iloc[rows]].to_numpy(np.int64)


def _gather_rows(
    name: str, predictions: Predictions, truth: GroundTruth, metrics: Sequence[Any], rows: np.ndarray, _: bool
) -> Evidence:
    table = truth.table
    average = average_members(predictions.frame, table.classes).set_index("id")
    values = average.loc[table.frame["id"].iloc[rows]].to_numpy(np.float64)
    scored = by_unit(table, rows, values, _folds(predictions, truth, rows))
    target, probability = scored.target, scored.probability
    if "unit" in table.frame:
        rows = rows[~table.frame["unit"].iloc[rows].duplicated().to_numpy()]
    classes = _class_evidence(target, probability, truth.task.exclusive) if truth.task.probabilities else None
    if classes is None:
        wrong = np.abs(target - probability).mean(axis=1)
    else:
        wrong = cross_entropy(target, probability, truth.task.exclusive)
    arrays = [(target, probability, scored.rows) for _ in metrics]
    return Evidence(name, predictions, arrays, scored.folds, rows, wrong, average, classes)


def _class_evidence(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> ClassEvidence:
    truth_of, answer, confusion = target >= 0.5, probability >= 0.5, None
    sums = reliability_bins(probability, target)
    if exclusive:
        classes = np.arange(target.shape[1])
        true, best = target.argmax(axis=1), probability.argmax(axis=1)
        truth_of, answer = classes == true[:, None], classes == best[:, None]
        confusion = confusion_matrix(true, best, len(classes))
        sums = reliability_bins(probability.max(axis=1), true == best)
    return ClassEvidence(
        np.stack([(truth_of & answer).sum(axis=0), answer.sum(axis=0), truth_of.sum(axis=0)], axis=1),
        confusion,
        sums,
        correct=is_correct(target, probability, exclusive),
        unsure=cross_entropy(probability, probability, exclusive),
    )


def _gather_maps(
    name: str, predictions: Predictions, truth: GroundTruth, metrics: Sequence[Any], rows: np.ndarray, progress: bool
) -> Evidence:
    from rich.console import Console
    from rich.progress import track

    from foldwise.data.images import read_mask

    table, ignore_index = truth.table, truth.metric.ignore_index
    measured: list[list[np.ndarray]] = [[] for _ in metrics]
    counts, unsure = [], []
    confusion, sums = np.zeros((len(table.classes),) * 2, np.int64), np.zeros((3, BINS))
    maps = iter_average_maps(predictions, table.frame["id"].iloc[rows].tolist())
    console = Console(stderr=True)
    steps = track(
        maps, name, total=len(rows), console=console, transient=True, disable=not (progress and console.is_terminal)
    )
    for row, (id, probability) in zip(rows, steps, strict=True):
        mask, answer = read_mask(table.mask_path(row)), probability.argmax(axis=0)
        try:
            own = pixel_confusion(mask, answer, len(table.classes), ignore_index)
            counts.append(pixel_counts(own))
            for metric, evidence in zip(metrics, measured, strict=True):
                evidence.append(counts[-1] if metric.of_counts else metric.measure(mask, probability))
        except Refusal as error:
            raise PredictionsError(predictions.folder, [f"id {id}: {error}"]) from error
        valid = mask != ignore_index
        confidence = probability.max(axis=0)[valid]
        confusion += own
        sums += reliability_bins(confidence, (mask == answer)[valid])
        unsure.append(1 - confidence.mean() if len(confidence) else 0.0)
    stacked = np.stack(counts)
    right, true_pixels = stacked[:, :, 0].sum(axis=1), stacked[:, :, 2].sum(axis=1)
    classes = ClassEvidence(stacked.sum(axis=0), confusion, sums, right == true_pixels, np.array(unsure))
    wrong = 1 - right / np.maximum(true_pixels, 1)
    arrays = [(np.stack(evidence),) for evidence in measured]
    return Evidence(name, predictions, arrays, _folds(predictions, truth, rows), rows, wrong, classes=classes)
